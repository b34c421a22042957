"""The rules of the layout, held by reading every module's syntax tree; each is shown to be able to fail."""

import ast
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

SERVICES = ("inference_core", "edge_node", "cloud_service")
SHIPPED = (*SERVICES, "protos", "toolchain")
MAY_IMPORT = {
    "protos": {"protos"},
    "inference_core": {"inference_core", "protos"},
    "edge_node": {"edge_node", "inference_core", "protos"},
    "cloud_service": {"cloud_service", "inference_core", "protos"},
    "toolchain": {"toolchain", "inference_core"},
    "examples": {"examples", "toolchain", "inference_core"},
    "deploy": {"deploy", "inference_core"},
}
PACKAGES = {*MAY_IMPORT, "tests", "benchmarks"}
OFFLINE = {
    "cryptography",
    "jinja2",
    "matplotlib",
    "onnx",
    "onnx_ir",
    "onnxruntime.quantization",
    "onnxscript",
    "onnxslim",
    "rich",
    "scipy",
    "sklearn",
    "torch",
    "typer",
    "yaml",
    "zstandard",
}
FASTAPI = {"edge_node/app.py", "edge_node/device_api.py", "edge_node/open_inference.py"}
WIRE = {
    "edge_node/call_guard.py",
    "edge_node/carrier.py",
    "edge_node/cloud_tls.py",
    "edge_node/connection.py",
    "edge_node/envelope.py",
    "edge_node/fleet_client.py",
    "edge_node/grpc_api.py",
    "edge_node/reply.py",
    "edge_node/stream.py",
    "cloud_service/fleet.py",
    "cloud_service/grpc_server.py",
    "cloud_service/guard.py",
    "cloud_service/identity.py",
    "cloud_service/servicer.py",
    "cloud_service/stream.py",
}
PROTOS = {
    "inference_core/tensors.py": "protos.open_inference_pb2",
    "inference_core/tls.py": "grpc",
    "inference_core/trust.py": "protos.model_file_pb2",
    "inference_core/calls.py": "grpc",
    "inference_core/grpc_server.py": "grpc",
    "inference_core/listening.py": "grpc",
    "inference_core/unserved.py": "grpc",
}
ENVIRONMENT = {
    "edge_node/__init__.py",  # one variable, which gRPC reads when it is imported
    "edge_node/settings.py",
    "cloud_service/__init__.py",
    "cloud_service/settings.py",
    "inference_core/qualify.py",  # what a process of its own is given of it
}
UNPICKLING = {"cPickle", "cloudpickle", "dill", "joblib", "jsonpickle", "marshal", "pickle", "shelve"}
SHAPELESS = {"base", "common", "constants", "helper", "helpers", "misc", "shared", "util", "utils"}
MAX_LINES = 300


@dataclass(frozen=True)
class Module:
    """One file of Python: its path from the root, and its text."""

    path: str
    source: str

    @property
    def package(self) -> str:
        return self.path.split("/")[0]

    @property
    def generated(self) -> bool:
        return self.path.endswith(("_pb2.py", "_pb2_grpc.py"))

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.source, self.path)

    @cached_property
    def imports(self) -> set[str]:
        """Everything imported anywhere in the module, each name with its module: "a.b.name"."""
        found: set[str] = set()
        here = self.path.removesuffix(".py").split("/")
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                above = ".".join(here[: -node.level]) if node.level else ""
                start = ".".join(part for part in (above, node.module) if part)
                found |= {f"{start}.{alias.name}" for alias in node.names}
        return found

    def imports_of(self, *wanted: str) -> list[str]:
        """The imports of the wanted modules or of anything inside them."""
        return sorted(
            name for name in self.imports for want in wanted if name == want or name.startswith(f"{want}.")
        )


def modules() -> list[Module]:
    """Every module of the repository, the tests included."""
    paths = (path for package in sorted(PACKAGES) for path in sorted((ROOT / package).rglob("*.py")))
    return [Module(path.relative_to(ROOT).as_posix(), path.read_text()) for path in paths]


MODULES = modules()
Rule = Callable[[Module], Iterator[str]]


# ---- the rules: each yields what a module does against it


def packages_import_only_inwards(module: Module) -> Iterator[str]:
    """`edge_node`, `cloud_service` and `toolchain` know `inference_core` and never each other."""
    if module.package not in MAY_IMPORT or module.generated:
        return
    for other in sorted(PACKAGES - MAY_IMPORT[module.package]):
        yield from (f"imports {name}" for name in module.imports_of(other))


def services_import_no_offline_libraries(module: Module) -> Iterator[str]:
    """What only the toolchain needs stays out of the images that are deployed."""
    if module.package in (*SERVICES, "protos", "deploy"):
        yield from (f"imports {name}" for name in module.imports_of(*OFFLINE))


def fastapi_is_met_in_the_app_and_its_routers(module: Module) -> Iterator[str]:
    if module.package in MAY_IMPORT and module.path not in FASTAPI:
        yield from (f"imports {name}" for name in module.imports_of("fastapi"))


def the_wire_is_touched_in_one_file_for_each_direction(module: Module) -> Iterator[str]:
    """gRPC and the generated messages: one module speaks to the cloud, one is spoken to."""
    if module.package not in (*SERVICES, "toolchain") or module.path in WIRE:
        return
    own = PROTOS.get(module.path)
    found = module.imports_of("grpc", "grpc_health", "protos")
    yield from (f"imports {name}" for name in found if name != own)


def the_environment_is_read_in_settings(module: Module) -> Iterator[str]:
    if module.package not in SERVICES or module.path in ENVIRONMENT:
        return
    yield from (f"imports {name}" for name in module.imports_of("os.environ", "os.getenv", "os.environb"))
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Attribute) and node.attr in ("environ", "environb", "getenv"):
            yield f"line {node.lineno} reads the environment"


def modules_are_nouns(module: Module) -> Iterator[str]:
    parts = set(module.path.removesuffix(".py").split("/"))
    yield from (f"is called {name}" for name in sorted(parts & SHAPELESS))


def nothing_is_unpickled(module: Module) -> Iterator[str]:
    if module.package not in SHIPPED:
        return
    yield from (f"imports {name}" for name in module.imports_of(*UNPICKLING))
    for node in ast.walk(module.tree):
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle" and not is_false(node.value):
            yield f"line {node.value.lineno} allows pickles"


def is_false(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is False


def imports_are_statements(module: Module) -> Iterator[str]:
    """No look-up by string where an import would do."""
    if module.package not in SHIPPED:
        return
    yield from (f"imports {name}" for name in module.imports_of("importlib.import_module"))
    for node in ast.walk(module.tree):
        if (isinstance(node, ast.Attribute) and node.attr == "import_module") or (
            isinstance(node, ast.Name) and node.id == "__import__"
        ):
            yield f"line {node.lineno} imports by a string"


def modules_are_short(module: Module) -> Iterator[str]:
    lines = len(module.source.splitlines())
    if module.package in MAY_IMPORT and not module.generated and lines > MAX_LINES:
        yield f"has {lines} lines, the limit is {MAX_LINES}"


def no_global_statement(module: Module) -> Iterator[str]:
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Global):
            yield f"line {node.lineno} says global {', '.join(node.names)}"


Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def what_is_public_has_a_docstring(module: Module) -> Iterator[str]:
    """Modules, classes, functions and methods whose names do not begin with an underscore.

    Methods named by someone else are documented there: calls of a protocol, in capitals, and a network's
    `forward`.
    """
    if module.package not in MAY_IMPORT or module.generated:
        return

    def undocumented(node: Documented, name: str) -> Iterator[str]:
        if not ast.get_docstring(node):
            yield f"{name or 'the module'} has no docstring"
        if not isinstance(node, ast.Module | ast.ClassDef):
            return
        for child in node.body:
            if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                theirs = isinstance(node, ast.ClassDef) and re.match("[A-Z]|forward$", child.name)
                if not child.name.startswith("_") and not theirs:
                    yield from undocumented(child, f"{name}.{child.name}".lstrip("."))

    yield from undocumented(module.tree, "")


EXAMPLES: list[tuple[Rule, Module, Module]] = [
    (
        packages_import_only_inwards,
        Module("edge_node/joint.py", "from cloud_service.batcher import Batcher"),
        Module("edge_node/joint.py", "from inference_core.errors import TandemError\nimport edge_nodes"),
    ),
    (
        packages_import_only_inwards,
        Module("inference_core/tensors.py", "def f() -> None:\n    import toolchain"),
        Module("inference_core/tensors.py", "from . import errors\nfrom .engine import Engine"),
    ),
    (
        packages_import_only_inwards,
        Module("toolchain/demo.py", "from edge_node import settings"),
        Module("toolchain/demo.py", "import subprocess"),
    ),
    (
        packages_import_only_inwards,
        Module("cloud_service/admin.py", "from ..edge_node import app"),
        Module("cloud_service/admin.py", "from .models import Models"),
    ),
    (
        packages_import_only_inwards,
        Module("edge_node/app.py", "from tests.bundles import write_bundle"),
        Module("tests/test_app.py", "from edge_node.app import App\nfrom cloud_service import admin"),
    ),
    (
        services_import_no_offline_libraries,
        Module("inference_core/engine.py", "import onnx.helper as h"),
        Module("inference_core/engine.py", "import onnxruntime as ort"),
    ),
    (
        services_import_no_offline_libraries,
        Module("edge_node/app.py", "from onnxruntime.quantization import quantize_static"),
        Module("toolchain/quantize.py", "from onnxruntime.quantization import quantize_static"),
    ),
    (
        services_import_no_offline_libraries,
        Module("cloud_service/settings.py", "try:\n    import yaml\nexcept ImportError:\n    pass"),
        Module("examples/digits/train.py", "import torch"),
    ),
    (
        fastapi_is_met_in_the_app_and_its_routers,
        Module("edge_node/joint.py", "from fastapi import HTTPException"),
        Module("edge_node/app.py", "from fastapi import FastAPI"),
    ),
    (
        fastapi_is_met_in_the_app_and_its_routers,
        Module("cloud_service/admin.py", "import fastapi"),
        Module("cloud_service/admin.py", "import starlette"),
    ),
    (
        the_wire_is_touched_in_one_file_for_each_direction,
        Module("edge_node/joint.py", "import grpc.aio"),
        Module("edge_node/carrier.py", "import grpc.aio"),
    ),
    (
        the_wire_is_touched_in_one_file_for_each_direction,
        Module("inference_core/trust.py", "from protos import open_inference_pb2"),
        Module("inference_core/trust.py", "from protos import model_file_pb2 as pb"),
    ),
    (
        the_wire_is_touched_in_one_file_for_each_direction,
        Module("inference_core/tensors.py", "from protos import open_inference_pb2_grpc"),
        Module("inference_core/tensors.py", "from protos import open_inference_pb2"),
    ),
    (
        the_environment_is_read_in_settings,
        Module("edge_node/app.py", "import os\nNAME = os.environ['NAME']"),
        Module("edge_node/settings.py", "import os\nNAME = os.environ['NAME']"),
    ),
    (
        the_environment_is_read_in_settings,
        Module("inference_core/engine.py", "from os import getenv as g"),
        Module("toolchain/demo.py", "from os import environ"),
    ),
    (
        modules_are_nouns,
        Module("edge_node/utils.py", ""),
        Module("edge_node/policy.py", ""),
    ),
    (
        modules_are_nouns,
        Module("toolchain/common/curve.py", ""),
        Module("toolchain/commonality.py", ""),
    ),
    (
        nothing_is_unpickled,
        Module("edge_node/outbox.py", "import pickle"),
        Module("edge_node/outbox.py", "import sqlite3"),
    ),
    (
        nothing_is_unpickled,
        Module("toolchain/scans.py", "np.load(path, allow_pickle=True)"),
        Module("toolchain/scans.py", "np.load(path, allow_pickle=False)"),
    ),
    (
        imports_are_statements,
        Module("edge_node/app.py", "import importlib\nimportlib.import_module('cloud_service')"),
        Module("edge_node/app.py", "from importlib.metadata import version"),
    ),
    (
        modules_are_short,
        Module("edge_node/app.py", "x = 1\n" * 301),
        Module("edge_node/app.py", "x = 1\n" * 300),
    ),
    (
        no_global_statement,
        Module("edge_node/app.py", "def f() -> None:\n    global x\n    x = 1"),
        Module("edge_node/app.py", "x = 'global'"),
    ),
    (
        what_is_public_has_a_docstring,
        Module("edge_node/app.py", "x = 1"),
        Module("edge_node/app.py", "'''Doc.'''\ndef _f() -> None: ..."),
    ),
    (
        what_is_public_has_a_docstring,
        Module("edge_node/app.py", "'''Doc.'''\nasync def serve() -> None: ..."),
        Module("edge_node/app.py", "'''Doc.'''\nasync def serve() -> None:\n    '''Doc.'''"),
    ),
    (
        what_is_public_has_a_docstring,
        Module("edge_node/app.py", "'''Doc.'''\nclass A:\n    '''Doc.'''\n    def f(self) -> None: ..."),
        Module(
            "edge_node/app.py", "'''Doc.'''\nclass A:\n    '''Doc.'''\n    def __init__(self) -> None: ..."
        ),
    ),
]
RULES = list(dict.fromkeys(rule for rule, _, _ in EXAMPLES))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_every_module_keeps(rule: Rule) -> None:
    found = [f"{module.path} {what}" for module in MODULES for what in rule(module)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(("rule", "bad", "good"), EXAMPLES)
def test_the_rule_can_fail(rule: Rule, bad: Module, good: Module) -> None:
    assert list(rule(bad)) != []
    assert list(rule(good)) == []


def test_all_packages_are_looked_at() -> None:
    seen = {module.package for module in MODULES}
    assert seen >= {*SHIPPED, "tests"}
    assert sum(module.generated for module in MODULES) == 5
    for named in (FASTAPI, WIRE, set(PROTOS), ENVIRONMENT):
        assert named <= {module.path for module in MODULES}, "a rule names a file that is gone"


# ---- text


WORKPLACE = re.compile(r"(?<![\w-])shared" + "/")
TEXT = {"", ".cfg", ".ini", ".json", ".lock", ".md", ".proto", ".py", ".pyi", ".sh", ".toml", ".yaml", ".yml"}
HIDDEN_BUT_OURS = {".ci", ".dockerignore", ".gitignore", ".github"}


def texts(root: Path) -> Iterator[Path]:
    """Files of text below `root`, without what tools keep in hidden folders."""
    for path in sorted(root.iterdir()):
        if path.name.startswith(".") and path.name not in HIDDEN_BUT_OURS:
            continue
        if path.is_dir() and not path.is_symlink():
            if path.name not in ("build", "dist", "__pycache__") and not path.name.endswith(".egg-info"):
                yield from texts(path)
        elif path.suffix in TEXT and path.is_file():
            yield path


def mentions_of_the_workplace(root: Path) -> list[str]:
    """Files that name the folder which is only there on the machine where this is built."""
    return [
        path.relative_to(root).as_posix()
        for path in texts(root)
        if WORKPLACE.search(path.read_text(errors="replace"))
    ]


def test_only_the_merge_script_knows_the_workplace() -> None:
    assert set(mentions_of_the_workplace(ROOT)) <= {".ci/run"}


def test_a_mention_of_the_workplace_is_found(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "guide.md").write_text("see ../shared" + "/data\n")
    (tmp_path / "fine.md").write_text("weights are shared, half-shared" + "/split\n")
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "guide.md").write_text("shared" + "/data\n")
    assert mentions_of_the_workplace(tmp_path) == ["docs/guide.md"]
