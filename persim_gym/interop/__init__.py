"""Bridges to other libraries, one file each, imported only when used."""
