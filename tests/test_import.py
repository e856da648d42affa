"""What importing costs, what it offers, and which module may know which."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

import persim_gym

PACKAGE = Path(persim_gym.__file__).parent

# The architecture: each package or module may import those before it.
LAYERS = (
    "types", "errors", "user_warnings", "extras", "arguments", "settings", "config", "files", "storage", "terminal",
    "devices", "threads", "memory", "tasks", "data", "collection", "model", "simulators", "factors", "training",
    "rollouts", "registration", "envs", "planning", "generation", "evaluation", "plotting", "interop", "baselines",
    "cli",
)  # fmt: skip
FORWARD = {("model", "simulators")}  # `Ensemble.simulator` is where users meet it; imported on use
PACKAGES = sorted(path.parent.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*/__init__.py"))
OPTIONAL = {
    "stable_baselines3",
    "d3rlpy",
    "minari",
    "pandas",
    "pyarrow",
    "mujoco",
    "imageio",
    "matplotlib",
    "sklearn",
    "pygame",
}


def unit(path, folder=PACKAGE):
    """The layer of a file: its name, or that of the sub-package of the folder that it is in."""
    return path.relative_to(folder).parts[0].removesuffix(".py")


def imports(path, *, lazy):
    """Yield the modules a file imports; also those imported within functions, if ``lazy``; never for types only."""
    tree = ast.parse(path.read_text())

    def visit(node):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)) and not lazy:
                continue
            if isinstance(child, ast.Import):
                yield from (alias.name for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{path} has a relative import"
                yield child.module
                yield from (f"{child.module}.{alias.name}" for alias in child.names)
            yield from visit(child)

    return set(visit(tree))


def files(folder=PACKAGE):
    """All files of the package, or of a sub-package, but its front door."""
    return [path for path in sorted(folder.rglob("*.py")) if path != folder / "__init__.py"]


def dependencies(folder):
    """Return, for every unit of a folder, the others that it imports, whether at once or on use."""
    dotted = ".".join(folder.relative_to(PACKAGE.parent).parts) + "."
    found = {unit(path, folder): set() for path in files(folder)}
    for path in files(folder):
        names = {
            name.removeprefix(dotted).split(".")[0] for name in imports(path, lazy=True) if name.startswith(dotted)
        }
        found[unit(path, folder)] |= names & found.keys() - {unit(path, folder)}
    return found


def test_data_goes_one_way():
    """A unit imports only what stands before it."""
    found = dependencies(PACKAGE)
    assert sorted(found) == sorted(LAYERS), "give each module its place among the layers"
    for here, others in found.items():
        for there in others:
            assert LAYERS.index(there) < LAYERS.index(here) or (here, there) in FORWARD, f"{here} imports {there}"


@pytest.mark.parametrize("folder", PACKAGES)
def test_no_package_has_a_circle(folder):
    """`graphlib.CycleError` names the modules that import each other."""
    assert list(graphlib.TopologicalSorter(dependencies(PACKAGE / folder)).static_order())


def test_the_front_door():
    """Type checkers and interpreters are told of the same names, and modules are there after a plain import."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    typed = next(node for node in tree.body if isinstance(node, ast.If))
    told = {
        alias.name: node.module.removeprefix("persim_gym.")
        for node in ast.walk(typed) if isinstance(node, ast.ImportFrom) and node.module.startswith("persim_gym")
        for alias in node.names
    }  # fmt: skip
    assert told == persim_gym._HOMES and persim_gym.__all__ == sorted({*told, "errors", "load", "register_ensemble"})
    assert all(getattr(persim_gym, name) is not None for name in persim_gym.__all__)
    fresh = "import persim_gym; persim_gym.baselines.fit_cql, persim_gym.config.get_config; persim_gym.nothing"
    done = subprocess.run([sys.executable, "-c", fresh], capture_output=True, text=True, check=False)
    assert "module 'persim_gym' has no attribute 'nothing'" in done.stderr


def test_only_kernels_know_numba():
    """Everything else asks `jit` whether it is there, and imports a kernel on use."""
    folder = "simulators/networks/kernels"
    dotted = f"persim_gym.{folder.replace('/', '.')}."
    for path in files():
        if path.relative_to(PACKAGE).parent.as_posix() == folder:
            continue
        known = {name.split(".")[0] for name in imports(path, lazy=True)}
        assert not known & {"numba", "llvmlite"}, f"{path.name} imports numba"
        kernels = {name for name in imports(path, lazy=False) if name.startswith(dotted)}
        assert kernels <= {f"{dotted}jit"}, f"{path.name} imports {kernels} at once"


def test_optional_libraries_are_imported_on_use():
    """No module needs an extra to be imported."""
    for path in files():
        found = {name.split(".")[0] for name in imports(path, lazy=False)} & OPTIONAL
        assert not found, f"{path.name} imports {found} at once"


@pytest.mark.parametrize(
    ("library", "ignorant"),
    [
        (
            "torch",
            (
                "types.py", "errors.py", "config.py", "files.py", "storage.py", "tasks", "data", "collection",
                "planning", "model/normalizer.py", "model/parameters.py", "model/ensemble_file.py", "model/ensemble.py",
                "simulators/networks/folding.py",
            ),
        ),
        ("gymnasium", ("data", "model", "simulators", "training", "rollouts", "planning")),
    ],
)  # fmt: skip
def test_who_knows_nothing_of_what(library, ignorant):
    """Planners and folding know no torch, the simulator no Gymnasium, tasks and data neither torch nor models."""
    for name in ignorant:
        assert (PACKAGE / name).exists(), name
        for path in files(PACKAGE / name) or [PACKAGE / name]:
            assert library not in {found.split(".")[0] for found in imports(path, lazy=False)}, f"{path.name}"


def test_a_search_needs_no_torch():
    """Nor does any module that a planner over sequences imports, directly or through another."""
    modules = {".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts): path for path in files()}
    planners = ("search", "settings", "random_shooting", "cem", "icem", "mppi")
    waiting, seen = [f"persim_gym.planning.{name}" for name in planners], set()
    while waiting:
        module = waiting.pop()
        seen.add(module)
        found = imports(modules[module], lazy=True)
        assert "torch" not in {name.split(".")[0] for name in found}, f"{module} imports torch"
        waiting += (found & modules.keys()) - seen
    assert "persim_gym.types" in seen


def test_importing_is_cheap(run_python):
    """No learning library, no optional one, no file format: only what registering ids takes."""
    heavy = OPTIONAL | {"torch", "safetensors", "scipy", "rich", "typer", "jax"}
    code = f"import persim_gym, sys; print(*sorted({heavy!r} & set(sys.modules)))"
    assert run_python(code).split() == []


def test_everything_promised_is_there():
    """Each public name is found, and listed by dir()."""
    for name in persim_gym.__all__:
        assert getattr(persim_gym, name) is not None
        assert name in dir(persim_gym)
    assert not hasattr(persim_gym, "no_such_name")


def test_no_name_is_hidden_by_a_module(run_python):
    """Importing a module sets it as an attribute of the package; no public function or class may have its name."""
    code = """
import importlib, types, persim_gym
for name in persim_gym.__all__:
    try:
        importlib.import_module(f"persim_gym.{name}")
    except ModuleNotFoundError:
        pass
print(*[name for name in persim_gym.__all__ if isinstance(getattr(persim_gym, name), types.ModuleType)])
"""
    assert set(run_python(code).split()) <= {"errors", "interop"}
