"""Chat templates in Jinja's immutable sandbox, with bounds on every loop, call, filter and operator.

Jinja bounds only a single `range`: three nested ones take hours, and a message can cause that long after the import.
Here a template may use only listed filters, tests, functions and methods, whose work is proportional to their values.
Each step, and each character of a value that a step makes, counts towards a budget per rendering. Values have a maximum
size, and the thread's CPU time bounds all steps together. No torch.
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
from jinja2.runtime import Context, LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from appliance.errors import BadInput, TooLarge


def _split_names(names: str) -> frozenset[str]:
    return frozenset(names.split())


MAX_SOURCE_BYTES = 64 * 1024
MAX_STEPS = 200_000
MAX_LENGTH = 8 << 20
MAX_MADE = 8 * MAX_LENGTH
"""Largest number of characters and items of all values that one rendering makes."""
MAX_SET = 64
"""Largest number of characters of an argument that is compared with a text at every index."""
MAX_ITEMS = 100_000
MAX_NUMBER = 1 << 20
MAX_CPU_S = 2.0
MAX_INDENT = 16
_EACH, _WRITTEN, _JOINED = "appliance_each", "appliance_written", "appliance_joined"
_WEIGHED, _SLICED = "appliance_weighed", "appliance_sliced"
_SHALLOW = frozenset(("length", "count", "first", "last", "list", "default", "d"))
"""Filters that read no nested values; templates ask for the number of messages at every message."""
_FILTERS = _split_names("""
    abs capitalize count d default dictsort e escape first format indent int items join last length list lower map max
    min reject rejectattr replace reverse round safe select selectattr sort string title tojson trim unique upper
""")
_TESTS = _split_names("""
    != < <= == > >= boolean callable defined divisibleby eq equalto even false float ge greaterthan gt in integer
    iterable le lessthan lower lt mapping ne none number odd sameas sequence string true undefined upper
""")
_GLOBALS = ("range", "dict", "namespace")
_METHODS: dict[type, frozenset[str]] = {
    str: _split_names("""
        capitalize casefold count endswith find format format_map index isalnum isalpha isascii isdecimal isdigit
        islower isnumeric isspace istitle isupper join lower lstrip partition removeprefix removesuffix replace rfind
        rindex rpartition rsplit rstrip split splitlines startswith strip swapcase title upper
    """),
    dict: _split_names("copy get items keys values"),
    list: _split_names("copy count index"),
    tuple: _split_names("count index"),
}
"""Methods that a template may call, by type of the value; other types have none."""
_PRODUCT_METHODS = _split_names("lstrip rfind rindex rpartition rsplit rstrip strip trim")
"""Methods and filters whose work is the product of the lengths of a text and an argument."""
_WIDE = re.compile(r"[0-9]{5}|\*|\{[^{}]*\{")
"""Pattern of a width of five digits, or of a width from an argument, in a format string."""
_FORMAT_FIELD = re.compile(r"[%{]")
"""Pattern of the beginning of a field in a format string."""


class _Context(Context):
    """The context of one rendering, with its remaining budgets."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.steps = MAX_STEPS
        self.room = MAX_LENGTH
        self.made = MAX_MADE
        self.until = time.thread_time() + MAX_CPU_S

    def spend(self, steps: int = 1) -> None:
        self.steps -= steps
        if self.steps < 0:
            raise TemplateError(f"it takes more than {MAX_STEPS} steps")
        if time.thread_time() > self.until:
            raise TemplateError(f"it takes more than {MAX_CPU_S} s")

    def take_made(self, value: Any) -> Any:
        """Return a value that a step made, after its size is taken from the rendering's budget."""
        self.made -= _length(value)
        if self.made < 0:
            raise TemplateError(f"it makes values of more than {MAX_MADE} characters and items")
        return _check_size(value)

    def write(self, length: int) -> None:
        self.room -= length
        if self.room < 0:
            raise TemplateError(f"it writes more than {MAX_LENGTH} characters")


class _Bounding(NodeTransformer):
    """Adds bounds where Jinja has no hook: loops, output, comparisons, slices and operands of `~`."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        if node.recursive:
            raise TemplateError("it has a recursive loop")
        self.generic_visit(node)
        node.iter = _apply_filter(node.iter, _EACH)
        return node

    def visit_Output(self, node: nodes.Output) -> nodes.Node:
        self.generic_visit(node)
        node.nodes = [_apply_filter(_as_constant(part), _WRITTEN) for part in node.nodes]
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        return _apply_filter(node, _SLICED) if isinstance(node.arg, nodes.Slice) else node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        node.expr = _apply_filter(node.expr, _WEIGHED)
        for operand in node.ops:
            operand.expr = _apply_filter(operand.expr, _WEIGHED)
        return node

    def visit_Test(self, node: nodes.Test) -> nodes.Node:
        self.generic_visit(node)
        if node.name not in ("defined", "undefined"):
            node.node = _apply_filter(node.node, _WEIGHED)
        node.args = [_apply_filter(argument, _WEIGHED) for argument in node.args or ()]
        return node

    def visit_Pair(self, node: nodes.Pair) -> nodes.Node:
        self.generic_visit(node)
        node.key = _apply_filter(node.key, _WEIGHED)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _apply_filter(nodes.List(node.nodes, lineno=node.lineno), _JOINED)


def _apply_filter(node: Any, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


def _as_constant(node: nodes.Expr) -> nodes.Expr:
    return nodes.Const(node.data, lineno=node.lineno) if isinstance(node, nodes.TemplateData) else node


class _Environment(ImmutableSandboxedEnvironment):
    context_class = _Context
    intercepted_binops = frozenset(ImmutableSandboxedEnvironment.default_binop_table)

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        self.filters["tojson"] = _to_json
        self.globals = {name: self.globals[name] for name in _GLOBALS} | {"raise_exception": _raise}
        self.tests = {name: test for name, test in self.tests.items() if name in _TESTS}
        self.filters = {name: _bound_filter(name, one) for name, one in self.filters.items() if name in _FILTERS}
        self.filters |= {
            _EACH: _bound_loop,
            _WRITTEN: _bound_output,
            _JOINED: _join_operands,
            _WEIGHED: _check_operand,
            _SLICED: _bound_slice,
        }

    def call(self, context: Any, obj: Any, *arguments: Any, **named: Any) -> Any:
        context.spend()
        _check_weight((*arguments, *named.values()))
        inner = getattr(obj, "__wrapped__", obj)  # the sandbox wraps a text's own `format`
        owner, name = getattr(inner, "__self__", None), getattr(inner, "__name__", "")
        _check_method(owner, name)
        _check_wanted(owner, name, arguments, named)
        return context.take_made(super().call(context, obj, *arguments, **named))

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
            _check_wanted(left, "format", (right,), {})
        if operator == "*":
            _check_product(left, right)
        return context.take_made(super().call_binop(context, operator, left, right))


def compile_template(source: str, what: str) -> Template:
    """Compile a template; `what` names it in errors.

    Raises:
        BadInput: the source is not a Jinja template, or cannot be bounded.
        TooLarge: the source has more than MAX_SOURCE_BYTES bytes.
    """
    if len(source.encode()) > MAX_SOURCE_BYTES:
        raise TooLarge(f"{what}: expected at most {MAX_SOURCE_BYTES} bytes, got {len(source.encode())}")
    environment = _Environment()
    try:
        return environment.from_string(_Bounding().visit(environment.parse(source)))
    except (TemplateError, RecursionError, SyntaxError, MemoryError) as error:
        raise BadInput(f"{what}: expected a Jinja template, got: {error}") from None


def render_template(template: Template, variables: Mapping[str, Any], what: str) -> str:
    """Render a template; `what` names it in errors.

    Raises:
        BadInput: the template refuses the messages, fails or exceeds a bound.
    """
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


def _bound_filter(name: str, filter_: Callable[..., Any]) -> Callable[..., Any]:
    """Return the filter with bounds. It takes the context, so Jinja never evaluates it during compilation."""
    wanted = getattr(getattr(filter_, "jinja_pass_arg", None), "name", None)

    @pass_context
    @functools.wraps(filter_)
    def bounded(context: Any, value: Any, *arguments: Any, **named: Any) -> Any:
        context.spend(1 + _length(value) // 1024)
        _check_weight((*arguments, *named.values()) if name in _SHALLOW else (value, *arguments, *named.values()))
        _check_wanted(value, filter_.__name__.removeprefix("do_"), arguments, named)
        passed = {"context": context, "eval_context": context.eval_ctx, "environment": context.environment}
        first = (passed[wanted],) if wanted in passed else ()
        made = context.take_made(filter_(*first, value, *arguments, **named))
        return _spend_each(context, made) if isinstance(made, Generator) else made

    bounded.jinja_pass_arg = pass_context(lambda: None).jinja_pass_arg  # type: ignore[attr-defined]
    return bounded


class _BoundedLoop(list[Any]):
    """The values of a loop; each iteration counts as a step."""

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
def _bound_loop(context: Any, values: Iterable[Any]) -> _BoundedLoop:
    return _BoundedLoop(context, values)


def _spend_each(context: _Context, values: Iterable[Any]) -> Iterator[Any]:
    """Yield the values of a filter's generator, counting each and checking its weight, which may have grown."""
    for value in values:
        context.spend()
        _check_weight((value,))
        yield value


@pass_context
def _check_operand(context: Any, value: Any) -> Any:
    context.spend()
    _check_weight((value,))
    return value


@pass_context
def _bound_output(context: Any, value: Any) -> Any:
    context.spend()
    _check_weight((value,))
    text = value if isinstance(value, str) else str(value)
    context.write(len(text))
    return text


@pass_context
def _join_operands(context: Any, values: list[Any]) -> str:
    context.spend()
    _check_weight((values,))
    return str(context.take_made("".join(map(str, values))))


@pass_context
def _bound_slice(context: Any, value: Any) -> Any:
    context.spend()
    return context.take_made(value)


def _check_method(owner: Any, name: str) -> None:
    """Refuse methods that are not on the list; macros, loops and functions have no owner."""
    if owner is None or isinstance(owner, LoopContext):
        return
    if not any(isinstance(owner, kind) and name in names for kind, names in _METHODS.items()):
        raise TemplateError(f"it calls {type(owner).__name__}.{name}, which no published template needs")


def _check_wanted(value: Any, name: str, arguments: Iterable[Any], named: Mapping[str, Any]) -> None:
    """Refuse arguments and format widths that would make a value longer than the limit."""
    for argument in (*arguments, *named.values()):
        if isinstance(argument, int) and abs(argument) > MAX_NUMBER:
            raise TemplateError(f"it asks for {_brief(argument)}, and {MAX_NUMBER} is the most")
    _check_made(value, name, (*arguments, *named.values()))
    if name in ("format", "format_map") and isinstance(value, str) and _WIDE.search(value):
        raise TemplateError("it formats to a width of its own")


def _check_made(value: Any, name: str, arguments: tuple[Any, ...]) -> None:
    """Refuse calls whose result would be too long, before it is built: it can be the product of two long texts."""
    if name == "translate":
        raise TemplateError("it translates a text by a table")
    first, second = (*arguments, "", "")[:2]
    times = most = 0
    if name in _PRODUCT_METHODS and any(isinstance(one, str) and len(one) > MAX_SET for one in arguments):
        raise TemplateError(f"it calls {name} with a text of more than {MAX_SET} characters")
    if name in ("format", "format_map"):
        times, most = len(_FORMAT_FIELD.findall(str(value))), _measure(arguments)
    elif name == "replace":
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
    """Refuse values with too many nested values.

    A value counts each time it is contained: comparing or writing forty lists, each containing the previous one twice,
    takes 2^40 steps that Jinja does not count.
    """
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


def _measure(values: Iterable[Any]) -> int:
    """Return approximately the number of characters of the values as text."""
    waiting, characters = list(values), 0
    while waiting:
        value = waiting.pop()
        characters += len(value) if isinstance(value, str) else 64
        if isinstance(value, list | tuple | set | frozenset):
            waiting += value
        elif isinstance(value, dict):
            waiting += [*value, *value.values()]
    return characters


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
    """Return a value as JSON, like transformers; separators and indent are short, as there can be many."""
    if (indent or 0) > MAX_INDENT or any(len(one) > MAX_INDENT for one in separators or ()):
        raise TemplateError(f"it writes JSON with more than {MAX_INDENT} characters between two values")
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys, allow_nan=False
    )


def _raise(message: str) -> None:
    raise TemplateError(message)
