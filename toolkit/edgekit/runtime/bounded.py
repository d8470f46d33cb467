"""A Jinja2 sandbox in which nothing takes unbounded time or memory. Jinja's own keeps templates from reaching out of it, and has no limits.

Every rendering has so much work to spend (``WORK``). A turn of a loop costs, and so does each call, and each string or list that is made,
by its length; what would make something large in one step (a repetition, a format's width, ``center``, ``join``, ``replace``, ...) is
reckoned beforehand and paid before it is done. So a template that loops for ever or writes gigabytes ends within seconds, and always at
the same place, whatever the machine.
"""

import re
from collections.abc import Callable, ItemsView, Iterable, Iterator, KeysView, Mapping, Sequence, Sized, ValuesView
from functools import wraps
from typing import Any, cast

import jinja2
import jinja2.nodes
import jinja2.runtime
import jinja2.sandbox
import jinja2.visitor
from jinja2.exceptions import SecurityError

WORK = 32_000_000
"""Units a rendering may spend: one for a character that is made or read, and for what takes longer:"""
STEP, CALL, ITEM = 64, 256, 32
"""A turn of a loop; a call of a filter, test, macro or method; an item of a list or mapping that is made or looked at."""
LENGTH = 10_000_000
"""Characters or items of one value."""
DEPTH = 64
"""Lists and mappings inside each other."""
NUMBER_BITS = 4096
"""Of the largest integer that a product or power may make."""
SLOW = 20_000
"""Characters for filters whose time grows with the square of them."""


class Overrun(SecurityError):
    """More than a template may spend or make."""


class Meter:
    """What a rendering has left."""

    def __init__(self) -> None:
        self.left = WORK

    def pay(self, units: int) -> bool:
        """Always true, so that it can stand in a condition. Raises Overrun when nothing is left."""
        self.left -= units
        if self.left < 0:
            raise Overrun("it takes more work than any prompt needs (an endless loop, or far too large a text)")
        return True

    def nodes(self, value: object, depth: int = 0) -> int:
        """Pays for every list, mapping and item in ``value``, and returns how many there are."""
        items = _items(value)
        if items is None:
            return 1
        if depth == DEPTH:
            raise Overrun(f"more than {DEPTH} lists or mappings are inside each other")
        self.pay(ITEM * (1 + len(items)))
        return 1 + sum(1 if isinstance(item, str) else self.nodes(item, depth + 1) for item in items)

    def text(self, value: object) -> int:
        """Pays for what ``value`` becomes as text, and returns about how long that is."""
        if isinstance(value, (str, bytes)):
            self.pay(len(value))
            return len(value)
        items = _items(value)
        if items is None:
            self.pay(STEP)
            return STEP
        self.nodes(value)
        return 2 + sum(2 + self.text(item) for item in items)

    def length(self, size: int, *, of: str) -> None:
        """Pays for a value of ``size`` characters or items before it is made."""
        if size > LENGTH:
            raise Overrun(f"{of} makes a value of {size:,} characters or items, at most {LENGTH:,} are allowed")
        self.pay(max(0, size))


def _items(value: object) -> Sequence[Any] | None:
    """What ``value`` holds, None where that is nothing or shows only as it is taken out."""
    if isinstance(value, (list, tuple)):
        return value
    if isinstance(value, Mapping):
        return [*value.keys(), *value.values()]
    return list(value) if isinstance(value, (KeysView, ValuesView, ItemsView)) else None


class Bounded(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """``meter`` is to be set anew before each rendering."""

    intercepted_binops = frozenset({"*", "**", "+", "%"})

    def __init__(self, **options: Any) -> None:
        super().__init__(finalize=self.shown, **options)
        self.meter = Meter()
        for name, function in self.filters.items():
            self.add_filter(name, function)
        for name, test in self.tests.items():
            self.tests[name] = _tested(self, name, cast(_Filter, test))
        self._own = {self.pay, self.joined, self.made, self.compared}

    def add_filter(self, name: str, function: "_Filter") -> None:
        """A filter that pays for what it does."""
        self.filters[name] = _paid(self, name, function)

    def pay(self, units: int) -> bool:
        return self.meter.pay(units)

    def joined(self, *parts: object) -> str:
        """The operator ``~``."""
        self.meter.length(sum(map(self.meter.text, parts)), of="~")
        return "".join(map(str, parts))

    def made(self, value: Any) -> Any:
        """A value that a template has made."""
        if isinstance(value, (str, bytes)):
            self.meter.pay(len(value))
        elif isinstance(value, Iterator):
            return self._taken(value)
        else:
            self.meter.nodes(value)
        return value

    def _taken(self, items: Iterator[Any]) -> Iterator[Any]:
        for item in items:
            self.meter.pay(STEP)
            yield item

    def compared(self, value: Any) -> Any:
        """One side of a comparison, or of ``in``."""
        if isinstance(value, (str, bytes)):
            self.meter.pay(len(value) // 16)
        elif isinstance(value, range):
            self.meter.pay(len(value) * ITEM)
        else:
            self.meter.nodes(value)
        return value

    def shown(self, value: Any) -> Any:
        """What ``{{ }}`` writes."""
        self.meter.text(value)
        return value

    def call_binop(self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any) -> Any:
        check = {"*": _product, "**": _product, "+": _sum, "%": _formatted}[operator]
        check(self.meter, operator, left, right)
        return self.made(super().call_binop(context, operator, left, right))

    def call(__self, __context: jinja2.runtime.Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        if getattr(__obj, "__self__", None) is __self and __obj in __self._own:
            return __obj(*args)
        __self.meter.pay(CALL + ITEM * (len(args) + len(kwargs)))
        if isinstance(__obj, (jinja2.runtime.Macro, jinja2.runtime.LoopContext)):
            __self.meter.pay(CALL)
            return super().call(__context, __obj, *args, **kwargs)
        given = tuple(__self.made(value) for value in args)
        for value in kwargs.values():
            __self.made(value)
        return __self.made(super().call(__context, __obj, *_method(__self.meter, __obj, given, kwargs), **kwargs))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """``str.format``, which Jinja replaces by its own."""
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None
        if value.__name__ == "format_map":
            raise Overrun("format_map is nothing that a prompt needs")

        def formatted(*args: Any, **kwargs: Any) -> str:
            _formatted(self.meter, "format", value.__self__, [*args, *kwargs.values()])
            return wrapped(*args, **kwargs)

        return formatted

    def _generate(self, source: jinja2.nodes.Template, *args: Any, **kwargs: Any) -> str:
        counted = _Counted(self).visit(source)
        counted.set_environment(self)
        return super()._generate(counted, *args, **kwargs)


class _Counted(jinja2.visitor.NodeTransformer):
    """Puts the calls that pay into a parsed template: for each turn of a loop and each macro, and around what makes or compares values."""

    def __init__(self, environment: Bounded) -> None:
        self._environment = environment

    def _call(self, name: str, node: jinja2.nodes.Node, *arguments: jinja2.nodes.Expr) -> jinja2.nodes.Call:
        attribute = jinja2.nodes.EnvironmentAttribute(name, lineno=node.lineno)
        return jinja2.nodes.Call(attribute, list(arguments), [], None, None, lineno=node.lineno)

    def _pay(self, node: jinja2.nodes.Node) -> jinja2.nodes.Call:
        """For one turn of ``node``: itself and the text that stands in it."""
        text = sum(len(data.data) for data in node.find_all(jinja2.nodes.TemplateData))
        return self._call("pay", node, jinja2.nodes.Const(STEP + text, lineno=node.lineno))

    def visit_For(self, node: jinja2.nodes.For) -> jinja2.nodes.For:
        price = self._pay(node)
        self.generic_visit(node)
        node.body.insert(0, jinja2.nodes.ExprStmt(price, lineno=node.lineno))
        if node.test is not None:
            node.test = jinja2.nodes.And(self._pay(node), node.test, lineno=node.lineno)
        return node

    def visit_Macro(self, node: Any) -> Any:
        price = self._pay(node)
        self.generic_visit(node)
        node.body.insert(0, jinja2.nodes.ExprStmt(price, lineno=node.lineno))
        return node

    visit_CallBlock = visit_Block = visit_Macro

    def visit_Concat(self, node: jinja2.nodes.Concat) -> jinja2.nodes.Call:
        self.generic_visit(node)
        return self._call("joined", node, *node.nodes)

    def visit_Compare(self, node: jinja2.nodes.Compare) -> jinja2.nodes.Compare:
        self.generic_visit(node)
        node.expr = self._compared(node.expr)
        for side in node.ops:
            side.expr = self._compared(side.expr)
        return node

    def _compared(self, node: jinja2.nodes.Expr) -> jinja2.nodes.Expr:
        return node if isinstance(node, jinja2.nodes.Const) else self._call("compared", node, node)

    def visit_List(self, node: Any) -> Any:
        self.generic_visit(node)
        store = getattr(node, "ctx", "load") != "load"
        return node if store or all(isinstance(item, jinja2.nodes.Const) for item in node.items) else self._call("made", node, node)

    visit_Tuple = visit_Dict = visit_List

    def visit_Getitem(self, node: jinja2.nodes.Getitem) -> jinja2.nodes.Expr:
        self.generic_visit(node)
        return self._call("made", node, node) if isinstance(node.arg, jinja2.nodes.Slice) else node


def _product(meter: Meter, sign: str, left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length() * right if sign == "**" else left.bit_length() + right.bit_length()
        if bits > NUMBER_BITS:
            raise Overrun(f"{sign} makes a number of {bits} bits")
    for thing, times in ((left, right), (right, left)):
        if isinstance(thing, (str, bytes, list, tuple)) and isinstance(times, int):
            meter.length(len(thing) * times, of="a repetition")


def _sum(meter: Meter, sign: str, left: Any, right: Any) -> None:
    if isinstance(left, (str, bytes, list, tuple)) and isinstance(right, (str, bytes, list, tuple)):
        meter.length(len(left) + len(right), of="+")


_WIDE = re.compile(r"\d{5}|%[^%a-zA-Z]*\*|\{[^{}]*\{")


def _formatted(meter: Meter, sign: str, left: Any, right: Any) -> None:
    """``%`` and ``format``: a width of five digits, or one that comes from the values, can make any length."""
    if isinstance(left, (str, bytes)):
        form = left if isinstance(left, str) else left.decode("latin-1")
        if _WIDE.search(form):
            raise Overrun("a format has too large a width, or one that is computed")
        # Nothing is wider than 9,999, and each value may come several times.
        size = max(1, form.count("%") + form.count("{"))
        meter.length(len(left) + size * (10_000 + meter.text(right)), of="a format")


def _method(meter: Meter, method: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
    """Pays for what a method of a text or number makes, before it does. Returns the arguments to call it with."""
    owner, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
    if isinstance(owner, (int, float)) and name not in ("bit_length", "is_integer", "conjugate", "hex"):
        raise Overrun(f"{name} of a number is nothing that a prompt needs")
    if not isinstance(owner, (str, bytes)):
        return args
    meter.pay(len(owner))
    numbers = [value for value in (*args, *kwargs.values()) if isinstance(value, int)]
    texts: list[Any] = [value for value in (*args, *kwargs.values()) if isinstance(value, (str, bytes))]
    if name in ("translate", "maketrans"):
        raise Overrun(f"{name} is nothing that a prompt needs")
    if name in ("ljust", "rjust", "center", "zfill"):
        meter.length(max([0, *numbers]), of=name)
    elif name == "expandtabs":
        meter.length(len(owner) * max([8, *numbers]), of=name)
    elif name == "replace" and len(texts) > 1:
        _replaced(meter, owner, texts[0], texts[1])
    elif name in ("split", "rsplit", "splitlines"):
        meter.pay(STEP * cast(Any, owner).count(texts[0]) if texts and texts[0] else ITEM * len(owner))
    elif name in ("strip", "lstrip", "rstrip"):
        meter.pay(len(owner) * (max(map(len, texts), default=0) // 16))
    elif name == "join" and args:
        items = list(args[0]) if isinstance(args[0], Iterable) and not isinstance(args[0], (str, bytes)) else args[0]
        _joined(meter, owner, items)
        return (items, *args[1:])
    return args


def _replaced(meter: Meter, text: Any, old: Any, new: Any) -> None:
    meter.length(len(text) + (text.count(old) if old else len(text) + 1) * len(new), of="replace")


def _joined(meter: Meter, between: Any, items: object) -> None:
    if isinstance(items, Sized):
        parts = [items] if isinstance(items, (str, bytes)) else cast(Iterable[Any], items)
        meter.length(sum(map(meter.text, parts)) + len(items) * len(between), of="join")


_FLAT = frozenset({"length", "count", "first", "last", "default", "d", "attr", "safe", "abs"})
"""Filters that look at their value without reading all of it."""
_WALKS = frozenset(
    {"sort", "dictsort", "unique", "min", "max", "groupby", "string", "tojson", "pprint", "xmlattr", "sum", "escape", "e", "forceescape"}
)
_EACH = dict.fromkeys(("list", "map", "select", "reject", "batch", "slice", "sort", "unique", "reverse", "title", "wordcount"), 16)
"""Filters that take a text character by character."""
_SQUARE = frozenset({"striptags", "urlize", "wordwrap", "pprint", "sum", "xmlattr"})
_Filter = Callable[..., Any]


def _paid(environment: Bounded, name: str, function: _Filter) -> _Filter:
    """A filter that pays before it works, and for what it gives."""
    leading = 1 if hasattr(function, "jinja_pass_arg") else 0

    @wraps(function)
    def paid(*args: Any, **kwargs: Any) -> Any:
        meter = environment.meter
        meter.pay(CALL)
        given = list(args)
        if name in _FLAT or len(given) <= leading:
            return function(*given, **kwargs)
        value = given[leading]
        if not isinstance(value, (str, bytes, list, tuple, Mapping)) and isinstance(value, Iterable) and name in {*_WALKS, "join"}:
            value = given[leading] = list(value)
        others = [*given[leading + 1 :], *kwargs.values()]
        _filter(meter, name, value, others, given[leading + 1 :], kwargs)
        return environment.made(function(*given, **kwargs))

    return paid


def _filter(meter: Meter, name: str, value: Any, others: list[Any], args: list[Any], kwargs: Mapping[str, Any]) -> None:
    for other in others:
        meter.text(other)
    if isinstance(value, (str, bytes)):
        meter.pay(len(value) * _EACH.get(name, 1))
    elif isinstance(value, Sized):
        meter.pay(len(value) * ITEM // 2)
    if name in _WALKS:
        size = meter.text(value)
        if name in _SQUARE:
            meter.pay(size * size // 64)
    elif name in _SQUARE and isinstance(value, str) and len(value) > SLOW:
        raise Overrun(f"{name} takes at most {SLOW:,} characters")
    numbers = [abs(other) for other in others if isinstance(other, (int, float))]
    if name in ("center", "truncate", "wordwrap"):
        meter.length(int(min(max([0, *numbers]), LENGTH + 1)), of=name)
    elif name == "indent":
        width = args[0] if args else kwargs.get("width", 4)
        meter.length((str(value).count("\n") + 1) * (len(width) if isinstance(width, str) else abs(int(width))), of=name)
    elif name == "tojson":
        widths = [*(int(n) for n in numbers if n < LENGTH), *(len(other) for other in others if isinstance(other, str))]
        meter.length(meter.nodes(value) * DEPTH * max([0, *widths]), of=name)
    elif name in ("batch", "slice", "round", "int", "float") and max([0, *numbers]) > (100 if name == "round" else 100_000):
        raise Overrun(f"{name} is given too large a number")
    elif name in ("int", "float") and isinstance(value, (str, bytes)) and len(value) > 1000:
        raise Overrun(f"{name} is given a number of {len(value):,} characters")
    elif name == "replace" and len(args) > 1:
        _replaced(meter, str(value), str(args[0]), str(args[1]))
    elif name == "format":
        _formatted(meter, "%", str(value), others)
    elif name == "trim" and args and isinstance(args[0], str):
        meter.pay(len(str(value)) * (len(args[0]) // 16))
    elif name == "join":
        _joined(meter, str(args[0] if args else kwargs.get("d", "")), value)


_COMPARING = frozenset({"eq", "==", "equalto", "ne", "!=", "lt", "<", "lessthan", "gt", ">", "greaterthan", "le", "<=", "ge", ">=", "in"})


def _tested(environment: Bounded, name: str, function: _Filter) -> _Filter:
    @wraps(function)
    def tested(*args: Any, **kwargs: Any) -> Any:
        environment.meter.pay(CALL)
        for value in (*args, *kwargs.values()):
            if name in _COMPARING or isinstance(value, (str, bytes)):
                environment.compared(value)
        return function(*args, **kwargs)

    return tested
