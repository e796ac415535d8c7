"""Chat templates, rendered within bounds: in Jinja's immutable sandbox, every loop, call, filter and operator counted.

Jinja bounds one `range` and nothing else: three nested ones take hours, and what a message holds can set them off long
after the import. Here each step takes from one budget of the rendering, no value grows beyond a size, and the thread's
own CPU time ends what is slow in each step. No torch.
"""

from __future__ import annotations

import functools
import json
import re
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from typing import Any

from jinja2 import Template, TemplateError, nodes, pass_context
from jinja2.ext import loopcontrols
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from appliance.errors import BadInput, TooLarge

MAX_SOURCE_BYTES = 64 * 1024
MAX_STEPS = 200_000
MAX_LENGTH = 8 << 20
MAX_ITEMS = 100_000
MAX_NUMBER = 1 << 20
MAX_CPU_S = 2.0
MAX_INDENT = 16
_EACH, _WRITTEN, _JOINED = "appliance_each", "appliance_written", "appliance_joined"
_WEIGHED = "appliance_weighed"
_SHALLOW = frozenset(("length", "count", "first", "last", "list", "default", "d"))
"""Filters that look at no value within their value; templates ask for the number of messages at every message."""
_WIDE = re.compile(r"[0-9]{5}|\*|\{[^{}]*\{")
"""A width of five digits, or one that an argument gives, in a text that formats."""


class _Context(Context):
    """One rendering's, with what it has left."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.steps = MAX_STEPS
        self.room = MAX_LENGTH
        self.until = time.thread_time() + MAX_CPU_S

    def spend(self, steps: int = 1) -> None:
        self.steps -= steps
        if self.steps < 0:
            raise TemplateError(f"it takes more than {MAX_STEPS} steps")
        if time.thread_time() > self.until:
            raise TemplateError(f"it takes more than {MAX_CPU_S} s")

    def write(self, length: int) -> None:
        self.room -= length
        if self.room < 0:
            raise TemplateError(f"it writes more than {MAX_LENGTH} characters")


class _Bounding(NodeTransformer):
    """Puts the bounds where Jinja has no hook of its own: loops, what is written, and what is joined by `~`."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        if node.recursive:
            raise TemplateError("it has a recursive loop")
        self.generic_visit(node)
        node.iter = _filtered(node.iter, _EACH)
        return node

    def visit_Output(self, node: nodes.Output) -> nodes.Node:
        self.generic_visit(node)
        node.nodes = [_filtered(_as_constant(part), _WRITTEN) for part in node.nodes]
        return node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        node.expr = _filtered(node.expr, _WEIGHED)
        for operand in node.ops:
            operand.expr = _filtered(operand.expr, _WEIGHED)
        return node

    def visit_Test(self, node: nodes.Test) -> nodes.Node:
        self.generic_visit(node)
        if node.name not in ("defined", "undefined"):
            node.node = _filtered(node.node, _WEIGHED)
        node.args = [_filtered(argument, _WEIGHED) for argument in node.args or ()]
        return node

    def visit_Pair(self, node: nodes.Pair) -> nodes.Node:
        self.generic_visit(node)
        node.key = _filtered(node.key, _WEIGHED)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(nodes.List(node.nodes, lineno=node.lineno), _JOINED)


def _filtered(node: Any, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


def _as_constant(node: nodes.Expr) -> nodes.Expr:
    return nodes.Const(node.data, lineno=node.lineno) if isinstance(node, nodes.TemplateData) else node


class _Environment(ImmutableSandboxedEnvironment):
    context_class = _Context
    intercepted_binops = frozenset(ImmutableSandboxedEnvironment.default_binop_table)

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        self.filters["tojson"] = _to_json
        self.globals["raise_exception"] = _raise
        del self.globals["lipsum"]
        self.filters = {name: _bounded(name, filter_) for name, filter_ in self.filters.items()}
        self.filters |= {_EACH: _each, _WRITTEN: _written, _JOINED: _joined, _WEIGHED: _weighed}

    def call(self, context: Any, obj: Any, *arguments: Any, **named: Any) -> Any:
        context.spend()
        _check_weight((*arguments, *named.values()))
        inner = getattr(obj, "__wrapped__", obj)  # the sandbox wraps a text's own `format`
        _check_wanted(getattr(inner, "__self__", None), getattr(inner, "__name__", ""), arguments, named)
        return _check_size(super().call(context, obj, *arguments, **named))

    def getitem(self, obj: Any, argument: Any) -> Any:
        _check_weight((argument,))
        return super().getitem(obj, argument)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        context.spend()
        _check_weight((left, right))
        for side in (left, right):
            if isinstance(side, int) and abs(side) > MAX_NUMBER:
                raise TemplateError(f"it computes with {_brief(side)}, and {MAX_NUMBER} is the most")
        if operator == "**":
            raise TemplateError("it raises to a power")
        if operator == "%":
            _check_wanted(left, "format", (), {})
        if operator == "*":
            _check_product(left, right)
        return _check_size(super().call_binop(context, operator, left, right))


def compile_template(source: str, what: str) -> Template:
    """BadInput where it is no Jinja template, or one that cannot be bounded."""
    if len(source.encode()) > MAX_SOURCE_BYTES:
        raise TooLarge(f"{what}: expected at most {MAX_SOURCE_BYTES} bytes, got {len(source.encode())}")
    environment = _Environment()
    try:
        return environment.from_string(_Bounding().visit(environment.parse(source)))
    except (TemplateError, RecursionError, SyntaxError, MemoryError) as error:
        raise BadInput(f"{what}: expected a Jinja template, got: {error}") from None


def render_template(template: Template, variables: Mapping[str, Any], what: str) -> str:
    """BadInput where it refuses, fails or takes more than the bounds allow."""
    try:
        return template.render(**variables)
    except (
        TemplateError,
        TypeError,
        ValueError,
        LookupError,
        AttributeError,
        ArithmeticError,
        RecursionError,
        MemoryError,
    ) as error:
        raise BadInput(f"{what}: expected to render these messages, got: {error}") from None


def _bounded(name: str, filter_: Callable[..., Any]) -> Callable[..., Any]:
    """The filter, counted. With the context it is never evaluated while a template is compiled, either."""
    wanted = getattr(getattr(filter_, "jinja_pass_arg", None), "name", None)

    @pass_context
    @functools.wraps(filter_)
    def bounded(context: Any, value: Any, *arguments: Any, **named: Any) -> Any:
        context.spend(1 + _length(value) // 1024)
        _check_weight((*arguments, *named.values()) if name in _SHALLOW else (value, *arguments, *named.values()))
        _check_wanted(value, filter_.__name__.removeprefix("do_"), arguments, named)
        passed = {"context": context, "eval_context": context.eval_ctx, "environment": context.environment}
        first = (passed[wanted],) if wanted in passed else ()
        made = _check_size(filter_(*first, value, *arguments, **named))
        return _spend_each(context, made) if isinstance(made, Generator) else made

    bounded.jinja_pass_arg = pass_context(lambda: None).jinja_pass_arg  # type: ignore[attr-defined]
    return bounded


class _Turns(list[Any]):
    """What a loop goes through: each turn is a step, when it comes."""

    def __init__(self, context: _Context, values: Iterable[Any]) -> None:
        super().__init__()
        self._context = context
        for value in values:
            context.spend()
            self.append(value)

    def __iter__(self) -> Iterator[Any]:
        for value in super().__iter__():
            self._context.spend()
            yield value


@pass_context
def _each(context: Any, values: Iterable[Any]) -> _Turns:
    return _Turns(context, values)


def _spend_each(context: _Context, values: Iterable[Any]) -> Iterator[Any]:
    """What a filter gives one by one, of which each may have grown since."""
    for value in values:
        context.spend()
        _check_weight((value,))
        yield value


@pass_context
def _weighed(context: Any, value: Any) -> Any:
    context.spend()
    _check_weight((value,))
    return value


@pass_context
def _written(context: Any, value: Any) -> Any:
    context.spend()
    _check_weight((value,))
    text = value if isinstance(value, str) else str(value)
    context.write(len(text))
    return text


@pass_context
def _joined(context: Any, values: list[Any]) -> str:
    context.spend()
    _check_weight((values,))
    return str(_check_size("".join(map(str, values))))


def _check_wanted(value: Any, name: str, arguments: Iterable[Any], named: Mapping[str, Any]) -> None:
    """No argument is a number that would make a text or a list longer than any; no text formats to such a width."""
    for argument in (*arguments, *named.values()):
        if isinstance(argument, int) and abs(argument) > MAX_NUMBER:
            raise TemplateError(f"it asks for {_brief(argument)}, and {MAX_NUMBER} is the most")
    _check_made(value, name, (*arguments, *named.values()))
    if name in ("format", "format_map") and isinstance(value, str) and _WIDE.search(value):
        raise TemplateError("it formats to a width of its own")


def _check_made(value: Any, name: str, arguments: tuple[Any, ...]) -> None:
    """What these make is counted before it is made: it can be the product of two long texts."""
    if name == "translate":
        raise TemplateError("it translates a text by a table")
    first, second = (*arguments, "", "")[:2]
    times = most = 0
    if name == "replace":
        times, most = str(value).count(str(first)), len(str(second))
    elif name == "join":
        pieces, between = (first, value) if isinstance(value, str) else (value, first)
        times, most = _length(pieces) or MAX_ITEMS, len(str(between))
    elif name in ("expandtabs", "indent"):
        times = str(value).count("\t" if name == "expandtabs" else "\n")
        most = first if isinstance(first, int) else len(str(first))
    if times * most > MAX_LENGTH:
        raise TemplateError(f"it makes a value longer than {MAX_LENGTH}")


def _check_product(left: Any, right: Any) -> None:
    for one, other in ((left, right), (right, left)):
        if isinstance(other, int) and _length(one) * abs(other) > MAX_LENGTH:
            raise TemplateError(f"it repeats a value to more than {MAX_LENGTH}")


def _check_size(value: Any) -> Any:
    most = MAX_LENGTH if isinstance(value, str) else MAX_ITEMS
    if _length(value) > most:
        raise TemplateError(f"it makes a value longer than {most}")
    return value


def _check_weight(values: Iterable[Any]) -> None:
    """Values that hold one another count as often as they are held: forty lists, each of the one before twice, are
    compared or written in 2^40 steps, none of which Jinja sees."""
    waiting, items, characters = list(values), 0, 0
    while waiting:
        value = waiting.pop()
        items += 1
        if isinstance(value, str):
            characters += len(value)
        elif isinstance(value, list | tuple | set | frozenset):
            waiting += value
        elif isinstance(value, dict):
            waiting += [*value, *value.values()]
        elif isinstance(value, Namespace):
            waiting += object.__getattribute__(value, "_Namespace__attrs").values()
        if items + len(waiting) > 2 * MAX_ITEMS or characters > 2 * MAX_LENGTH:
            raise TemplateError(f"it works on values that hold more than {2 * MAX_ITEMS} others")


def _length(value: Any) -> int:
    return len(value) if isinstance(value, str | bytes | list | tuple | dict | range) else 0


def _brief(number: int) -> str:
    return str(number) if number.bit_length() < 64 else f"a number of {number.bit_length()} bits"


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """As transformers has it. What stands between two values is short: there can be many."""
    if (indent or 0) > MAX_INDENT or any(len(one) > MAX_INDENT for one in separators or ()):
        raise TemplateError(f"it writes JSON with more than {MAX_INDENT} characters between two values")
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys, allow_nan=False
    )


def _raise(message: str) -> None:
    raise TemplateError(message)
