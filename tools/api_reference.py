"""Writes docs/api.md from the docstrings of the package: python -m tools.api_reference [--check].

Reads the source without importing it. Public is what has no leading underscore, in modules whose
path has none.
"""

import argparse
import ast
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent
HEAD = """# API reference

Made by `make docs` from the docstrings; do not edit. Shapes use one alphabet: B batch, T length,
V vocabulary, D width, H heads, C classes, L layers, N models, P pairs.
"""

Function = ast.FunctionDef | ast.AsyncFunctionDef


def render(package: Path) -> str:
    """The reference of every public module under the folder `package`."""
    modules = [(name, ast.parse(file.read_text(), str(file))) for name, file in _files(package)]
    index = [f"- [`{name}`](#{_anchor(name)})" for name, tree in modules if _shown(tree)]
    parts = [HEAD, "\n".join(index) + "\n"]
    for name, tree in modules:
        if _shown(tree):
            parts += _module(name, tree)
    return "\n".join(parts)


def _files(package: Path) -> Iterator[tuple[str, Path]]:
    for file in sorted(package.rglob("*.py")):
        place = file.relative_to(package.parent).with_suffix("").parts
        if place[-1] == "__init__":
            place = place[:-1]
        if not any(part.startswith(("_", ".")) for part in place):
            yield ".".join(place), file


def _shown(tree: ast.Module) -> bool:
    return bool(ast.get_docstring(tree)) or any(_public(tree.body))


def _anchor(name: str) -> str:
    """The anchor that a Markdown heading of this module name gets."""
    return name.replace(".", "")


def _public(body: list[ast.stmt]) -> Iterator[Function | ast.ClassDef]:
    for node in body:
        if isinstance(node, Function | ast.ClassDef) and not node.name.startswith("_"):
            yield node


def _module(name: str, tree: ast.Module) -> list[str]:
    parts = [f"## {name}\n"]
    doc = ast.get_docstring(tree)
    if doc:
        parts.append(_text(doc))
    for node in _public(tree.body):
        parts.append(f"### {name}.{node.name}\n")
        parts.append(_code(_class(node) if isinstance(node, ast.ClassDef) else _signature(node)))
        parts += [_text(doc)] if (doc := ast.get_docstring(node)) else []
        if isinstance(node, ast.ClassDef):
            for method in _public(node.body):
                if isinstance(method, Function) and (doc := ast.get_docstring(method)):
                    parts += [_code(_signature(method)), _text(doc)]
    return parts


def _class(node: ast.ClassDef) -> str:
    """The head of a class and its annotated fields."""
    bases = ", ".join(ast.unparse(x) for x in [*node.bases, *node.keywords])
    lines = [f"@{ast.unparse(x)}" for x in node.decorator_list]
    lines.append(f"class {node.name}({bases}):" if bases else f"class {node.name}:")
    fields = [x for x in node.body if isinstance(x, ast.AnnAssign) and _is_public_name(x.target)]
    lines += [f"    {ast.unparse(x)}" for x in fields]
    return "\n".join(lines) if fields else "\n".join(lines).removesuffix(":")


def _is_public_name(target: ast.expr) -> bool:
    return isinstance(target, ast.Name) and not target.id.startswith("_")


def _signature(node: Function, width: int = 96) -> str:
    """The def line as Python, an argument a line where it is long."""
    args, returns = node.args, f" -> {ast.unparse(node.returns)}" if node.returns else ""
    prefix = "async def" if isinstance(node, ast.AsyncFunctionDef) else "def"
    decorators = "".join(
        f"@{ast.unparse(x)}\n" for x in node.decorator_list if ast.unparse(x) == "property"
    )
    line = f"{prefix} {node.name}({', '.join(_arguments(args))}){returns}"
    if len(line) > width:
        inner = ",\n    ".join(_arguments(args))
        line = f"{prefix} {node.name}(\n    {inner},\n){returns}"
    return decorators + line


def _arguments(args: ast.arguments) -> Iterator[str]:
    """Each argument with its annotation and default, and the markers / and * between them."""
    positional = [*args.posonlyargs, *args.args]
    defaults = [None] * (len(positional) - len(args.defaults)) + list(args.defaults)
    for i, (arg, default) in enumerate(zip(positional, defaults, strict=True)):
        yield _argument(arg, default)
        if args.posonlyargs and i == len(args.posonlyargs) - 1:
            yield "/"
    if args.vararg:
        yield "*" + _argument(args.vararg, None)
    elif args.kwonlyargs:
        yield "*"
    for arg, default in zip(args.kwonlyargs, args.kw_defaults, strict=True):
        yield _argument(arg, default)
    if args.kwarg:
        yield "**" + _argument(args.kwarg, None)


def _argument(arg: ast.arg, default: ast.expr | None) -> str:
    note = f": {ast.unparse(arg.annotation)}" if arg.annotation else ""
    if default is None:
        return arg.arg + note
    value = ast.unparse(default)
    return f"{arg.arg}{note} = {value}" if note else f"{arg.arg}={value}"


def _code(text: str) -> str:
    return f"```python\n{text}\n```\n"


def _text(doc: str) -> str:
    """A docstring as it stands: its line breaks and indents carry meaning."""
    return f"```text\n{doc}\n```\n"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.api_reference", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if it is stale")
    arguments = parser.parse_args(argv)
    target, text = ROOT / "docs" / "api.md", render(ROOT / "kd_jax")
    if arguments.check:
        if target.exists() and target.read_text() == text:
            return 0
        print(f"{target.relative_to(ROOT)} is not up to date: run make docs", file=sys.stderr)
        return 1
    target.write_text(text)
    print(f"wrote {target.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
