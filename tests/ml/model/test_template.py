"""A chat template writes what Jinja would write, and ends within its bounds whatever it holds."""

from __future__ import annotations

import json
import time

import pytest
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from appliance.errors import BadInput
from appliance.ml.model import template
from appliance.ml.model.template import MAX_SOURCE_BYTES, compile_template, render_template
from scripts.kit.tiny_model import TEMPLATE

MESSAGES = [
    {"role": "system", "content": " Be brief. "},
    {"role": "user", "content": "One?\n"},
    {"role": "assistant", "content": "<think>hm</think>\n\nTwo."},
    {"role": "user", "content": "Three? é 漢"},
]
PUBLISHED = {
    "chatml": TEMPLATE,
    "llama-3": (
        "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + "
        "message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 "
        "%}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}"
        "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
    ),
    "qwen-3": (
        "{%- if messages[0].role == 'system' %}\n{{- '<|im_start|>system\\n' + messages[0].content }}\n{%- endif %}\n"
        "{%- set ns = namespace(multi=true, last=messages|length - 1) %}\n{%- for message in messages[::-1] %}\n"
        "{%- set index = (messages|length - 1) - loop.index0 %}\n{%- if ns.multi and message.role == 'user' and message"
        ".content is string and not(message.content.startswith('<tool>')) %}\n{%- set ns.multi = false %}\n"
        "{%- set ns.last = index %}\n{%- endif %}\n{%- endfor %}\n{%- for message in messages %}\n{%- set content = "
        "message.content %}\n{%- if '</think>' in content %}\n{%- set content = content.split('</think>')[-1]"
        ".lstrip('\\n') %}\n{%- endif %}\n{{- '<|im_start|>' ~ message.role ~ '\\n' ~ content ~ loop.last }}\n"
        "{%- endfor %}\n{{- ns.last }}"
    ),
    "others": (
        "{%- macro shown(m, n=1) -%}[{{ m.role|upper }}:{{ n }}]{%- endmacro -%}\n{% for m in messages if m.role != "
        "'system' %}{{ shown(m, n=loop.length) }}{{ loop.previtem.role if loop.previtem is defined }}{{ loop.cycle("
        "'a', 'b') }}{% if loop.index > 2 %}{% break %}{% endif %}{% else %}none{% endfor %}"
        "{{ messages|tojson(indent=2) }}"
        "{{ {'b': 1, 'a': 2}|dictsort }}{{ messages|map(attribute='role')|join(', ') }}{{ '%s-%d'|format('x', 3) }}"
        "{{ '{}!'.format('y') }}{{ missing }}{% for x in missing %}{% endfor %}{{ range(3)|list }}{{ 7 // 2 * 2 % 5 }}"
        "{% set block %}in {{ 'side' }}{% endset %}{{ block }}{% filter upper %}low{% endfilter %}{{ none }}"
        "{{ 'ab' * 2 }}"
        "{{ messages|selectattr('role', 'equalto', 'user')|list|length }}"
    ),
}


@pytest.mark.parametrize("source", PUBLISHED.values(), ids=PUBLISHED)
def test_bounds_change_nothing_of_what_a_template_writes(source: str) -> None:
    plain = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    values = {"messages": MESSAGES, "add_generation_prompt": True, "bos_token": "<s>", "eos_token": "</s>"}
    written = render_template(compile_template(source, "template"), values, "template")
    source = source.replace("|tojson(indent=2)", "|plain")
    plain.filters["plain"] = lambda value: json.dumps(value, ensure_ascii=False, indent=2)
    assert written == plain.from_string(source).render(**values)


def grown(step: str, start: str = "'0123456789'") -> str:
    """Return a template that takes a step, by which a value grows, sixty times."""
    loop = f"{{% for i in range(60) %}}{step.replace('SET', '{% set ns.x =')}{{% endfor %}}"
    return f"{{% set ns = namespace(x={start}) %}}{loop}{{{{ ns.x|length }}}}"


def doubled(use: str, start: str = "[1]", step: str = "[X, X]") -> str:
    """Two equal values, each of the one before twice, forty times: no longer than two, and 2^40 inside."""
    steps = "".join(f"{{% set ns.{x} = {step.replace('X', f'ns.{x}')} %}}" for x in "ab")
    return f"{{% set ns = namespace(a={start}, b={start}) %}}{{% for i in range(40) %}}{steps}{{% endfor %}}{use}"


LONG = "'a' * 1000000"

HOSTILE = {
    "held-compared": doubled("{{ ns.a == ns.b }}"),
    "held-ordered": doubled("{{ ns.a < ns.b }}"),
    "held-searched": doubled("{{ ns.a in [ns.b] }}"),
    "held-tested": doubled("{{ ns.a is eq(ns.b) }}"),
    "held-selected": doubled("{{ [ns.a]|select('eq', ns.b)|list|length }}"),
    "held-sorted": doubled("{{ [ns.a, ns.b]|sort|length }}"),
    "held-counted": doubled("{{ [ns.a].count(ns.b) }}"),
    "held-written": doubled("{{ ns.a }}"),
    "held-joined": doubled("{{ ns.a ~ '' }}"),
    "held-text": doubled("{{ ns.a|string|length }}"),
    "held-json": doubled("{{ ns.a|tojson|length }}"),
    "held-printed": doubled("{{ ns.a|pprint|length }}"),
    "held-formatted": doubled("{{ ('%s' % ns.a)|length }}"),
    "held-by-tuples": doubled("{{ {ns.a: 1}|length }}", "1", "(X, X)"),
    "held-as-key": doubled("{{ {}[ns.a] }}", "1", "(X, X)"),
    "held-by-dicts": doubled("{{ ns.a == ns.b }}", "{}", "{1: X, 2: X}"),
    "held-by-namespaces": doubled("{{ ns.a }}", "1", "namespace(x=X, y=X)"),
    "held-texts": f"{{% set x = {LONG} %}}{{{{ [x] * 90000 }}}}",
    "held-later": "{% set ns = namespace(x=[1]) %}{% set g = [ns]|map(attribute='x')|map('upper') %}"
    "{% for i in range(40) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ g|list|length }}",
    "made-by-replace": f"{{{{ ({LONG}).replace('a', {LONG}) }}}}",
    "made-by-the-filter": f"{{{{ ({LONG})|replace('a', 'b' * 10000) }}}}",
    "made-by-join": f"{{{{ ({LONG}).join('a' * 20000)|length }}}}",
    "made-by-join-of-what-comes": f"{{{{ ('a' * 20000)|map('upper')|join({LONG})|length }}}}",
    "made-by-tabs": "{{ ('\t' * 20000).expandtabs(1000000)|length }}",
    "made-by-indent": "{{ ('\n' * 20000)|indent(1000000, blank=true)|length }}",
    "made-by-a-table": "{{ ('a' * 20000).translate({97: 'b' * 1000000})|length }}",
    "loops": "".join(f"{{% for x{n} in range(99999) %}}" for n in range(3)) + "{% endfor %}" * 3,
    "loops-over-text": "{% for a in text %}{% for b in text %}{% for c in text %}{% endfor %}{% endfor %}{% endfor %}",
    "filtered-loop": "{% for a in range(99999) if a in range(99999)|list %}{% endfor %}",
    "recursive-loop": "{% for m in [[1], [2]] recursive %}{{ loop(m) }}{{ loop(m) }}{% endfor %}",
    "recursive-macro": "{% macro f(n) %}{{ f(n - 1) if n }}{{ f(n - 1) if n }}{% endmacro %}{{ f(100) }}",
    "endless-macro": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "power": "{{ 9 ** 9 ** 9 ** 9 }}",
    "product": grown("SET ns.x * ns.x %}", "1000"),
    "repeated": "{{ 'a' * 1000000000 }}",
    "repeated-list": "{{ [0] * 1000000000 }}",
    "centred": "{{ 'a'|center(1000000000) }}",
    "adjusted": "{{ 'a'.ljust(1000000000) }}",
    "indented": "{{ 'a\na'|indent(1000000000) }}",
    "mapped": "{{ ['a']|map('center', 1000000000)|list }}",
    "format-filter": "{{ '%1000000000d'|format(1) }}",
    "format-operator": "{{ '%1000000000d' % 1 }}",
    "format-star": "{{ '%*d'|format(1000000, 1) }}",
    "format-method": "{{ '{:>1000000000}'.format(1) }}",
    "format-nested": "{{ '{:>{}}'.format(1, 1000000000) }}",
    "format-method-by-name": "{{ ('{:>1000000000}'|attr('format'))(1) }}",
    "joined": grown("SET ns.x ~ ns.x %}"),
    "added": grown("SET ns.x + ns.x %}"),
    "replaced": grown("SET ns.x.replace('0', '00') %}"),
    "replaced-by-filter": grown("SET ns.x|replace('0', '00') %}"),
    "list-added": grown("SET ns.x + ns.x %}", "[1]"),
    "block": grown("{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}SET y %}"),
    "words": "{{ lipsum(n=1000000) }}",
    "written": "{% set x = 'a' * 1000000 %}{% for i in range(99999) %}{{ x }}{% endfor %}",
    "written-text": "{% for i in range(99999) %}" + "a" * 5_000 + "{% endfor %}",
    "compared": "{% set x = range(99999)|list %}{% for i in range(99999) %}{% if -1 in x %}{% endif %}{% endfor %}",
    "sorted": "{% set x = range(99999)|list %}{% for i in range(9999) %}{% set y = x|sort(reverse=true) %}{% endfor %}",
    "wrapped": "{{ ('a' * 1000000) * 4|wordwrap(1) }}",
    "wrapped-late": f"{{{{ (({LONG}) * 4)|wordwrap(1)|length }}}}",
    "a-filter-that-is-not-listed": "{{ messages|groupby('role') }}",
    "a-test-that-is-not-listed": "{{ 'upper' is filter }}",
    "a-function-that-is-not-listed": "{{ cycler('a') }}",
    "a-method-that-is-not-listed": "{{ 'a'.zfill(3) }}",
    "a-method-of-a-number": "{{ (5).bit_length() }}",
    "a-method-of-bytes": "{{ 'a'.encode() }}",
    "stripped-by-many": f"{{{{ ({LONG}).strip('b' * 1000000 + 'a') }}}}",
    "trimmed-by-many": f"{{{{ ({LONG})|trim('b' * 1000000 + 'a') }}}}",
    "found-from-behind": f"{{{{ ({LONG}).rfind('b' + 'a' * 500000) }}}}",
    "split-from-behind": f"{{{{ ({LONG}).rsplit('b' + 'a' * 500000) }}}}",
    "formatted-often": f"{{{{ ('{{0}}' * 100000).format({LONG}) }}}}",
    "formatted-often-by-name": f"{{{{ ('%(a)s' * 100000) % {{'a': {LONG}}} }}}}",
    "formatted-often-by-the-filter": f"{{{{ ('%(a)s' * 100000)|format(a={LONG}) }}}}",
    "many-values": f"{{% set x = {LONG} %}}" + "".join(f"{{% set x{n} = x ~ {n} %}}" for n in range(999)),
    "many-slices": f"{{% set x = {LONG} %}}{{{{ x" + "[1:]" * 9_000 + "|length }}",
    "nested": "{{ " + "(" * 20_000 + ")" * 20_000 + " }}",
    "deep-blocks": "{% if 1 %}" * 2_000 + "{% endif %}" * 2_000,
    "long": "a" * (MAX_SOURCE_BYTES + 1),
}
ENDED_BY_TIME = ("filtered-loop", "compared")
"""Templates that end as `sorted` does, by the limit of processor time. `sorted` has the real limit."""


@pytest.mark.thorough
@pytest.mark.parametrize("name", HOSTILE)
def test_a_template_that_would_not_end_or_fills_memory_is_refused_within_seconds(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name in ENDED_BY_TIME:
        monkeypatch.setattr(template, "MAX_CPU_S", 0.2)
    source, began = HOSTILE[name], time.thread_time()
    with pytest.raises(BadInput):
        render_template(compile_template(source, "template"), {"text": "a" * 100_000}, "template")
    assert time.thread_time() - began < 5


def test_a_long_conversation_is_within_bounds() -> None:
    """A megabyte in a thousand turns."""
    messages = [{"role": ("user", "assistant")[n % 2], "content": "a word " * 143} for n in range(1_000)]
    for source in list(PUBLISHED.values())[:3]:
        values = {"messages": messages, "add_generation_prompt": True, "bos_token": ""}
        assert len(render_template(compile_template(source, "template"), values, "template")) > 1_000_000
