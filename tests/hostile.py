"""Input made to harm who reads it: headers, configs, tokenizers, templates, manifests and directories.

What is listed here must be answered by an EdgekitError in bounded time and memory (tests/unit/test_hostile.py), but for HARMLESS templates,
which may also render.
"""

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from checkpoints import VARIANTS, make_checkpoint, write_json, write_tokenizer


def framed(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file of any header; ``length`` is what its first eight bytes say."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def tensor(begin: Any, end: Any, dtype: Any = "F32", shape: Any = (2,)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape) if isinstance(shape, tuple) else shape, "data_offsets": [begin, end]}


def headers() -> dict[str, bytes]:
    """Whole model.safetensors files."""
    eight = bytes(8)
    return {
        "empty": b"",
        "seven bytes": bytes(7),
        "length of all bits": framed(b"{}", length=(1 << 64) - 1),
        "length of a terabyte": framed(b"{}", length=1 << 40),
        "length beyond the file": framed(b"{}", length=50_000_000),
        "no JSON": framed(b"{" + b"\xff" * 100),
        "a list": framed([1, 2]),
        "a string": framed(b'"{}"'),
        "deep JSON": framed(b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}"),
        "deep objects": framed(b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
        "a number of a million digits": framed(b'{"a":' + b"9" * 1_000_000 + b"}"),
        "overlap": framed({"a": tensor(0, 8), "b": tensor(4, 12)}, bytes(12)),
        "same place": framed({"a": tensor(0, 8), "b": tensor(0, 8)}, eight),
        "hole": framed({"a": tensor(0, 8), "b": tensor(16, 24)}, bytes(24)),
        "negative": framed({"a": tensor(-8, 0)}, eight),
        "backwards": framed({"a": tensor(8, 0)}, eight),
        "beyond the end": framed({"a": tensor(0, 1 << 62, shape=(1 << 60,))}, eight),
        "64 bits overflow": framed({"a": tensor(0, 8, shape=(1 << 62, 1 << 62))}, eight),
        "shape of a huge number": framed({"a": tensor(0, 8, shape=(10**300,))}, eight),
        "fractions": framed({"a": tensor(0.0, 8.0)}, eight),
        "booleans": framed({"a": tensor(False, True, shape=(True,))}, eight),
        "strings": framed({"a": tensor("0", "8")}, eight),
        "negative shape": framed({"a": tensor(0, 8, shape=(-2,))}, eight),
        "a thousand dimensions": framed({"a": tensor(0, 4, shape=(1,) * 1000)}, bytes(4)),
        "unknown dtype": framed({"a": tensor(0, 8, "F33")}, eight),
        "dtype a list": framed({"a": tensor(0, 8, ["F32"])}, eight),
        "wrong dtype": framed({"a": tensor(0, 8, "F64")}, eight),
        "half a byte": framed({"a": tensor(0, 1, "F4", (1,))}, bytes(1)),
        "twice the same key": framed(
            b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', eight
        ),
        "twice the same offsets": framed(b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8],"data_offsets":[0,8]}}', eight),
        "metadata of lists": framed({"__metadata__": {"a": [1]}, "a": tensor(0, 8)}, eight),
        "bytes left over": framed({"a": tensor(0, 8)}, bytes(9)),
        "a hundred thousand wrong tensors": framed({f"t{i}": tensor(0, 8) for i in range(100_000)}, eight),
        "not a number": framed(b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,8]}}', eight),
        "half a character": framed(b'{"\\ud800":3}'),
    }


def configs() -> dict[str, bytes]:
    """Whole config.json files. Where only one key is wrong, the rest is that of a good checkpoint."""
    good = VARIANTS["phi3-longrope"].config_json()
    wrong: dict[str, Any] = {
        "no heads": {"num_attention_heads": 0},
        "negative layers": {"num_hidden_layers": -1},
        "a billion layers": {"num_hidden_layers": 10**9},
        "a number of 400 digits": {"hidden_size": 10**400},
        "true": {"hidden_size": True},
        "a fraction": {"vocab_size": 320.5},
        "text": {"intermediate_size": "256"},
        "a list": {"max_position_embeddings": [96]},
        "epsilon of nothing": {"rms_norm_eps": 0},
        "epsilon infinite": {"rms_norm_eps": float("inf")},
        "epsilon not a number": {"rms_norm_eps": float("nan")},
        "theta of 400 digits": {"rope_theta": 10**400},
        "RoPE a list": {"rope_scaling": [1, 2]},
        "RoPE of a type that is a list": {"rope_scaling": {"type": ["longrope"]}},
        "no factors": {"rope_scaling": {"type": "longrope", "short_factor": [], "long_factor": []}},
        "a million factors": {"rope_scaling": {"type": "longrope", "short_factor": [1.0] * 1_000_000, "long_factor": [1.0] * 16}},
        "factors not numbers": {"rope_scaling": {"type": "longrope", "short_factor": [None] * 16, "long_factor": [1.0] * 16}},
        "partial rotary of a third": {"partial_rotary_factor": 1 / 3},
        "partial rotary of a thousand": {"partial_rotary_factor": 1000},
        "layer types without end": {"layer_types": ["full_attention"] * 100_000},
        "kv heads do not divide": {"num_key_value_heads": 3},
        "code of its own": {"model_type": "evil", "auto_map": {"AutoModel": "evil.Evil"}},
        "model type a list": {"model_type": ["phi3"]},
        "model type a path": {"model_type": "../../../etc/passwd"},
        "already quantized": {"quantization_config": {"quant_method": "gptq"}},
        "quantized by a list": {"quantization_config": [1]},
        "another activation": {"hidden_act": "exec"},
    }
    whole = {
        "empty": b"",
        "null": b"null",
        "a list": b"[]",
        "deep": b"[" * 1_000_000,
        "deep value": b'{"a":' * 100_000,
        "a million digits": b'{"vocab_size": ' + b"1" * 1_000_000 + b"}",
        "not UTF-8": b"\xff\xfe{}",
        "twice": b'{"model_type": "phi3", "model_type": "llama"}',
        "twice, forty thousand times": b"{" + b",".join(b'"k%d": 0' % (i % 40_000) for i in range(80_000)) + b"}",
        "half a character": json.dumps(good | {"_name_or_path": "\ud800"}).encode(),
        "900 levels": json.dumps(good).encode()[:-1] + b', "later": ' + b"[" * 900 + b"]" * 900 + b"}",
        "half": json.dumps(good).encode()[:-20],
        "larger than any": b" " * ((64 << 20) + 1),
    }
    return whole | {name: json.dumps(good | change).encode() for name, change in wrong.items()}


def tokenizers(folder: Path) -> dict[str, bytes]:
    """Whole tokenizer.json files; ``folder`` is for a good one."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", {})
    write_tokenizer(folder)
    good = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    twice = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}

    def but(**change: Any) -> bytes:
        return json.dumps(good | change).encode()

    def model(**change: Any) -> bytes:
        return but(model=good["model"] | change)

    def split(pattern: str) -> dict[str, Any]:
        return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}

    def row(normalizer: dict[str, Any], times: int) -> dict[str, Any]:
        return {"type": "Sequence", "normalizers": [normalizer] * times}

    nested: Any = {"type": "Lowercase"}
    for _ in range(100):
        nested = {"type": "Sequence", "normalizers": [nested]}
    return {
        "empty": b"",
        "a list": b"[]",
        "deep": b"[" * 500_000,
        "a terabyte of one letter": but(normalizer={"type": "Sequence", "normalizers": [twice] * 40}),
        "a gigabyte in one step": but(normalizer=twice | {"content": "a" * 10_000_000}),
        "something before each letter": but(normalizer=twice | {"pattern": {"String": ""}, "content": "a" * 1_000_000}),
        "a decoder that doubles": but(decoder={"type": "Sequence", "decoders": [twice] * 40}),
        "parts without end": but(pre_tokenizer={"type": "Sequence", "pretokenizers": [{"type": "Whitespace"}] * 100_000}),
        "nested normalizers": but(normalizer=nested),
        "no decoder": but(decoder=None),
        "an unknown decoder": but(decoder={"type": "Exec", "command": "id"}),
        "a regular expression that is none": but(normalizer=twice | {"pattern": {"Regex": "("}}),
        "a vocabulary that is a number": model(vocab=3),
        "negative ids": model(vocab={"a": -1}),
        "an id of 400 digits": model(vocab={"a": 10**400}),
        "merges of what is not there": model(merges=[["x", "yz"]]),
        "a model nobody knows": model(type="Pickle"),
        "something wherever nothing is": but(normalizer=row({"type": "Replace", "pattern": {"Regex": ""}, "content": "a"}, 40)),
        "twice what a letter comes before": but(normalizer=row({"type": "Replace", "pattern": {"Regex": "(?=a)"}, "content": "a"}, 40)),
        "much in front of everything": but(normalizer=row({"type": "Prepend", "prepend": "a" * 1_000_000}, 100)),
        "a pattern that goes back and back": but(pre_tokenizer=split("(a+)+$")),
        "a replacement that goes back and back": but(normalizer={"type": "Replace", "pattern": {"Regex": "(a|aa|a?)+$"}, "content": "b"}),
    }


def costly_tokenizers(folder: Path) -> dict[str, bytes]:
    """Whole tokenizer.json files that do open, and of which long words, or the file itself, may take all the time or memory."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", {})
    write_tokenizer(folder)
    good = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))

    def but(**change: Any) -> bytes:
        return json.dumps(good | change).encode()

    def added(contents: Iterable[str], **flags: bool) -> list[dict[str, Any]]:
        plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
        return [{"id": 400 + i, "content": text, **plain, **flags} for i, text in enumerate(contents)]

    letters = {"[UNK]": 0, "a": 1, "##a": 2, **{"##" + "a" * n: n + 1 for n in range(2, 60)}}
    wordpiece = {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 1 << 40}
    pieces = [["<unk>", 0.0], *(["a" * n, -float(n)] for n in range(1, 400))]
    special = {"id": "<s>", "ids": [1] * 100_000, "tokens": ["<s>"] * 100_000}
    return {
        "a pattern that looks behind and back": but(
            pre_tokenizer={"type": "Split", "pattern": {"Regex": "(?=(a*)*b)x"}, "behavior": "Isolated", "invert": False}
        ),
        "a decoder with a pattern that goes back": but(
            decoder={
                "type": "Sequence",
                "decoders": [{"type": "Replace", "pattern": {"Regex": "(.|..)+$x"}, "content": "b"}, good["decoder"]],
            }
        ),
        "half": json.dumps(good).encode()[:-30],
        "the good one": json.dumps(good).encode(),
        "words without end in pieces": but(model={**wordpiece, "vocab": letters}, pre_tokenizer=None),
        "pieces of every length": but(model={"type": "Unigram", "unk_id": 0, "vocab": pieces, "byte_fallback": False}, pre_tokenizer=None),
        "a hundred thousand added tokens": but(added_tokens=added(f"<{i}>" for i in range(100_000))),
        "added tokens of a million letters": but(added_tokens=added("a" * 1_000_000 + str(i) for i in range(20))),
        "added tokens that take all spaces": but(added_tokens=added(("<x>",), lstrip=True, rstrip=True)),
        "a vocabulary of one long token": but(model=good["model"] | {"vocab": good["model"]["vocab"] | {"b" * 30_000_000: 500}}),
        "much in front of each text": but(
            post_processor={
                "type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}] * 1000,
                "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
                "special_tokens": {"<s>": special},
            }
        ),
        "splits without end": but(pre_tokenizer={"type": "Sequence", "pretokenizers": [{"type": "Whitespace"}] * 5000}),
        "lower case a thousand times": but(normalizer={"type": "Sequence", "normalizers": [{"type": "NFKD"}, {"type": "NFKC"}] * 500}),
    }


TEMPLATES: dict[str, str] = {
    "attributes": "{{ ''.__class__.__mro__[1].__subclasses__() }}{{ 1 / 0 }}",
    "globals": "{{ cycler.__init__.__globals__.os.system('id') }}",
    "format reaching out": "{{ '{0.__class__.__init__}'.format(1).x.y }}",
    "a loader": "{% include '/etc/passwd' %}",
    "nested loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "filtered": "{% for i in range(99999) %}{% for j in range(99999) if false %}{% endfor %}{% endfor %}",
    "dataset": "{% set x %}{% for i in range(99999) %}" + "y" * 9999 + "{% endfor %}{% endset %}",
    "concat": "{% set ns = namespace(x='a') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "plus": "{% set ns = namespace(x='a') %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "listplus": "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "nest": "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
    "nestdict": "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = {'a': ns.x, 'b': ns.x} %}{% endfor %}{{ ns.x|tojson }}",  # noqa: E501
    "nesttuple": "{% set ns = namespace(x=1) %}{% for i in range(60) %}{% set ns.x = (ns.x, ns.x) %}{% endfor %}{{ {ns.x: 1} }}",
    "namespaces in each other": "{% set ns = namespace(x=1) %}{% for i in range(60) %}{% set ns.x = namespace(a=ns.x, b=ns.x) %}{% endfor %}{{ ns.x }}",  # noqa: E501
    "batchnest": "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = (ns.x + ns.x)|batch(2)|list %}{% endfor %}{{ ns.x }}",  # noqa: E501
    "eqnest": "{% set ns = namespace(x=[1],y=[1]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% set ns.y = [ns.y, ns.y] %}{% endfor %}{{ ns.x == ns.y }}",  # noqa: E501
    "macrotree": "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(90) }}",
    "looprec": "{% set ns=namespace(n=0) %}{% for i in [1,2] recursive %}{% if loop.depth < 90 %}{{ loop([1,2]) }}{% endif %}{% endfor %}",
    "blockrec": "{% block a %}{{ self.b() }}{{ self.b() }}{% endblock %}{% block b %}{{ self.c() }}{{ self.c() }}{% endblock %}{% block c %}{{ self.a() }}{% endblock %}",  # noqa: E501
    "center": "{{ 'a'|center(10**9) }}",
    "ljust": "{{ 'a'.ljust(10**9) }}",
    "zfill": "{{ 'a'.zfill(10**9) }}",
    "center2": "{{ 'a'.center(10**9,'b') }}",
    "expandtabs": "{{ '\t'.expandtabs(10**9) }}",
    "fmt": "{{ '%999999999d' % 1 }}",
    "fmt*": "{{ '%*d' % (10**9, 1) }}",
    "format": "{{ '{:>999999999}'.format(1) }}",
    "formatn": "{{ '{:>{}}'.format(1, 10**9) }}",
    "ffilter": "{{ '%999999999d'|format(1) }}",
    "format_map": "{{ '{a:>999999999}'.format_map({'a':1}) }}",
    "fmt.": "{{ '%.999999999f' % 1.0 }}",
    "replace": "{% set x = 'a'*100000 %}{{ x|replace('a', x) }}",
    "replace2": "{% set x = 'a'*100000 %}{{ x.replace('', x) }}",
    "join": "{% set x = 'a'*1000000 %}{{ range(99999)|map('string')|join(x) }}",
    "join2": "{% set x = 'a'*1000000 %}{{ x.join(['a']*99999) }}",
    "joinattr": "{% set x='a'*1000000 %}{{ ([{'a':x}]*99999)|join(',',attribute='a') }}",
    "indent": "{{ ('\n'*100000)|indent(10**6) }}",
    "indents": "{{ ('\n'*100000)|indent('a'*100000) }}",
    "wordwrap": "{{ ('a'*1000000)|wordwrap(1, wrapstring='b'*100000) }}",
    "tojson": "{{ range(9999)|list|tojson(indent=10**6) }}",
    "round": "{{ 1.5|round(10**9,'ceil') }}",
    "batch": "{{ [1]|batch(10**9, 0)|list }}",
    "slice": "{{ [1]|slice(10**9)|list }}",
    "sum": "{{ ([[1]*1000]*9999)|sum(start=[]) }}",
    "int": "{{ ('f'*9999999)|int(base=16) }}",
    "to_bytes": "{{ (1).to_bytes(10**10,'big') }}",
    "strip": "{% set a='a'*3000000 %}{{ (a~'b').strip('c'*1000000~'a') }}",
    "trim": "{% set a='a'*3000000 %}{{ (a~'b')|trim('c'*1000000~'a') }}",
    "translate": "{{ ('a'*99999).translate({97:'b'*99999}) }}",
    "striptags": "{{ ('<!--x-->'*1000000)|striptags }}",
    "urlize": "{{ ('http://a.b '*300000)|urlize }}",
    "title": "{{ ('ab '*3000000)|title }}",
    "split": "{{ ('a '*4000000).split(' ')|length }}",
    "splitws": "{{ ('a '*4000000).split()|length }}",
    "listchars": "{{ ('é'*9000000)|list|length }}",
    "a power": "{{ 9**9**9**9 }}",
    "strftime": "{{ strftime_now('%Y'*1000000) }}",
    "strftimew": "{{ strftime_now('%999999999Y') }}",
    "raise": "{{ raise_exception('a'*9999999) }}",
    "key": "{{ messages['a'*9999999].b }}",
    "slices": "{% set a='a'*9000000 %}{% for i in range(99999) %}{% set b = a[::-1] %}{% endfor %}",
    "in": "{% set a='a'*9000000 %}{% for i in range(99999) %}{% if 'b' in a %}{% endif %}{% endfor %}",
    "eq": "{% set a='a'*9000000 %}{% set b='a'*8999999~'a' %}{% for i in range(99999) %}{% if b == a %}{% endif %}{% endfor %}",
    "find": "{% set a='a'*9000000 %}{% for i in range(99999) %}{% set b = a.find('b') %}{% endfor %}",
    "upper": "{% set a='a'*9000000 %}{% for i in range(99999) %}{% set b = a|upper %}{% endfor %}",
    "length gen": "{% for i in range(99999) %}{% set b = range(99999)|map('string')|list|length %}{% endfor %}",
    "sort": "{% for i in range(99999) %}{% set b = range(99999)|sort|first %}{% endfor %}",
    "rangelist": "{% for i in range(99999) %}{% set b = range(99999)|list %}{% endfor %}",
    "rangein": "{% for i in range(99999) %}{% if 'a' in range(99999) %}{% endif %}{% endfor %}",
    "max": "{% for i in range(99999) %}{% set b=range(99999)|max %}{% endfor %}",
    "select": "{% for i in range(99999) %}{% set b=range(99999)|select('eq', -1)|first %}{% endfor %}",
    "last": "{% for i in range(99999) %}{% set b=range(99999)|reverse|first %}{% endfor %}",
    "genlast": "{% for i in range(99999) %}{% set b = range(99999)|map('abs')|sum %}{% endfor %}",
    "unpack": "{% for i in range(99999) %}{% set b = dict(range(99999)|map('list')) %}{% endfor %}",
    "star": "{% macro f() %}{{ varargs|length }}{% endmacro %}{% for i in range(99999) %}{% set x = f(*range(99999)) %}{% endfor %}",
    "dictfromkeys": "{% for i in range(99999) %}{% set x = {}.fromkeys(range(99999)) %}{% endfor %}",
    "cmplist": "{% set a=range(99999)|list %}{% set b=range(99999)|list %}{% for i in range(99999) %}{% if a==b %}{% endif %}{% endfor %}",
    "rangecmp": "{% for i in range(99999) %}{% if range(99999)==range(99999) %}{% endif %}{% endfor %}",
    "itergen": "{% for i in range(99999) %}{% if -1 in range(99999)|map('abs') %}{% endif %}{% endfor %}",
    "parens": "{{ " + "(" * 50000 + "1" + ")" * 50000 + " }}",
    "nots": "{{ " + "not " * 50000 + "1 }}",
    "adds": "{{ 1" + "+1" * 50000 + " }}",
    "fors": "{% for i in messages %}" * 5000 + "{% endfor %}" * 5000,
    "ifs": "{% if 1 %}" * 5000 + "{% endif %}" * 5000,
    "big": "a" * 9999999,
    "opens": "{{" * 100000,
    "comment": "{#" * 100000,
    "quote": "{{ '" + "\\\\" * 100000,
    "elifs": "{% if 0 %}" + "{% elif 0 %}" * 20000 + "{% endif %}",
    "attrs": "{{ a" + ".a" * 50000 + " }}",
    "ternary": "{{ " + "1 if 0 else " * 20000 + "1 }}",
    "dots": "{{ '" + "a" * 200000 + "'|map(attribute='" + "a." * 10000 + "')|list }}",
    "many entries": "{{ {" + "'a':1," * 40000 + "} }}",
    "a long name": "{{ " + "a" * 200000 + " }}",
    "many blocks": "".join(f"{{% block a{i} %}}{{% endblock %}}" for i in range(4000)),
    "many macros": "".join(f"{{% macro a{i}() %}}{{% endmacro %}}" for i in range(3500)),
    "many sets": "{% set a=1 %}" * 15000,
    "lstrip re": "{{ ' '*9999999 ~ 'a' }}|trim",
    "rfind": "{% set a='a'*9000000 %}{% for i in range(99999) %}{% set b = a.rfind('b') %}{% endfor %}",
    "rsplit": "{% set a='a '*4000000 %}{% for i in range(99999) %}{% set b = a.rsplit(' ') %}{% endfor %}",
    "list.count": "{% set a=range(99999)|list %}{% for i in range(99999) %}{% set b = a.count('x') %}{% endfor %}",
    "list.index": "{% set a=range(99999)|list %}{% for i in range(99999) %}{% set b = a.index(99998) %}{% endfor %}",
    "range.count": "{% for i in range(99999) %}{% set b = range(99999).count('x') %}{% endfor %}",
    "range.index": "{% for i in range(99999) %}{% set b = range(99999).index(99998.0) %}{% endfor %}",
    "punycode": "{{ ('é'*200000 ~ 'a'*200000).encode('punycode') }}",
    "unpunycode": "{{ ('a'*200000 ~ '-' ~ 'z9'*90000).encode().decode('punycode') }}",
    "idna": "{{ ('é'*2000000).encode('idna') }}",
    "namereplace": "{{ ('\U0001f600'*9000000).encode('ascii', 'namereplace') }}",
    "backslashreplace": "{{ ('\U0001f600'*90000000).encode('ascii', 'backslashreplace') }}",
    "zlib": "{% set a=('a'*9000000).encode() %}{% for i in range(99999) %}{% set b = a.decode('zlib') %}{% endfor %}",
    "deep tuple": "{% set ns = namespace(x=1) %}{% for i in range(99999) %}{% set ns.x = (ns.x,) %}{% endfor %}{{ messages[ns.x] }}",
    "wide tuple": "{% set ns = namespace(x=1) %}{% for i in range(90) %}{% set ns.x = (ns.x,ns.x) %}{% endfor %}{{ messages[ns.x] }}",
    "raise a list": "{{ raise_exception([[['a'*1000]*1000]*1000]*1000) }}",
    "raise nested": "{% set ns = namespace(x=[1]) %}{% for i in range(90) %}{% set ns.x = [ns.x,ns.x] %}{% endfor %}{{ raise_exception(ns.x) }}",  # noqa: E501
    "undefined of": "{% set ns = namespace(x=[1]) %}{% for i in range(90) %}{% set ns.x = [ns.x,ns.x] %}{% endfor %}{{ ns.x[ns.x].y }}",
    "changed": "{% set a=range(99999)|list %}{% for i in range(99999) %}{% if loop.changed(a ~ i) %}{% endif %}{% endfor %}",
    "changed lists": "{% for i in range(99999) %}{% if loop.changed(range(99999)|list) %}{% endif %}{% endfor %}",
    "casefold": "{% set a='ΐ'*9000000 %}{% for i in range(99999) %}{% set b = a.casefold() %}{% endfor %}",
    "partition": "{% set a='a'*9000000 %}{% for i in range(99999) %}{% set b = a.rpartition('b') %}{% endfor %}",
    "big number": "{% set ns = namespace(x=9) %}{% for i in range(60) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "cyc": "{% set c = cycler(1,2) %}{% for i in range(99999) %}{% for j in range(99999) %}{{ c.next() }}{% endfor %}{% endfor %}",
}


def manifests(good: dict[str, Any]) -> dict[str, bytes]:
    """Whole edgekit.json files; ``good`` is one of an artifact."""

    def but(*path: Any, value: Any) -> bytes:
        copy = here = json.loads(json.dumps(good))
        for key in path[:-1]:
            here = here[key]
        here[path[-1]] = value
        return json.dumps(copy).encode()

    def file(name: str) -> bytes:
        return but("files", value=good["files"] | {name: {"bytes": 4, "sha256": "0" * 64}})

    return {
        "empty": b"",
        "deep": b"[" * 1_000_000,
        "larger than any": b" " * ((16 << 20) + 1),
        "not UTF-8": b"\xff",
        "another format": but("format", value="gguf"),
        "a version from the future": but("version", value=10**400),
        "a number no float holds": but("scheme", "bits_per_weight", value=10**400),
        "infinite": but("scheme", "bits_per_weight", value=float("inf")),
        "an absolute path": file("/etc/passwd"),
        "a way out": file("../../../etc/passwd"),
        "a way out in the middle": file("a/../../b"),
        "a drive": file("C:\\Windows\\win.ini"),
        "a device of Windows": file("a:b"),
        "NUL": file("a\0b"),
        "itself": file("edgekit.json"),
        "not there": file("weights.bin"),
        "a size below nothing": but("files", value={"config.json": {"bytes": -1, "sha256": "0" * 64}}),
        "a template outside": but("chat_template", value="/etc/passwd"),
        "an engine that is a module": but("engine", "name", value="os.path"),
        "no vocabulary": but("tokens", "vocab_size", value=0),
        "a stop token outside": but("tokens", "stop", value=[1 << 40]),
        "context below nothing": but("context", "length", value=-5),
        "a vector that is no vector": but("conformance", "encode", value=[3]),
        "a thousand stop tokens that are text": but("tokens", "stop", value=["a"] * 1000),
        "the same keys over and over": b'{"x": {' + b",".join(b'"k%d": 0' % (i % 40_000) for i in range(80_000)) + b"}}",
        "a context of two billion": but("context", "length", value=2_000_000_000),
        "a context of 400 digits": but("context", "length", value=10**400),
        "a switch of 400 digits": but("context", "rope_switch", value=10**400),
        "a window of 64 bits": but("context", "sliding_window", value=1 << 63),
        "a vocabulary of a billion": but("tokens", "vocab_size", value=10**9),
        "a beginning below nothing": but("tokens", "bos", value=-1),
        "an id of 400 digits in a text's vector": but("conformance", "encode", value=[{"text": "a", "ids": [10**400]}]),
        "an id below nothing in a text's vector": but("conformance", "encode", value=[{"text": "a", "ids": [-1]}]),
        "an id of 40 bits in an answer": but("conformance", "greedy", "vectors", value=[{"prompt": [1 << 40], "continuation": [1]}]),
        "groups of a terabyte": but("scheme", "linear", "group", value=1 << 40),
        "bits without end": but("scheme", "linear", "bits", value=1 << 40),
        "parameters of 400 digits": but("model", "parameters", value=10**400),
        "a file of an exabyte": but("files", value={"config.json": {"bytes": 1 << 60, "sha256": "0" * 64}}),
        "a release of 400 digits": but("release", value=10**400),
        "half a character in a vector": but("conformance", "encode", value=[{"text": "\ud800", "ids": [1]}]),
        "half a character in a chat": but("conformance", "chat", value=[{"messages": [], "rendered": "\udc00"}]),
        "half a character in a name": but("model", "name", value="\udfff"),
        "half a character in a key": file("\ud800"),
        "half a character in a key of the checkpoint": but("model", "files", value={"\ud800": "0"}),
        "an escape in a file's name": file("\x1b[2J"),
        "a name that turns the line around": file("\u202etxt.exe"),
        "a name of a thousand characters": file("a" * 1000),
        "keys nobody knows, in each other": b'{"format": "edgekit", "version": 1, "later": ' + b"[" * 900 + b"]" * 900 + b"}",
    }


def _linked(name: str, target: str) -> Callable[[Path], None]:
    def make(directory: Path) -> None:
        make_checkpoint(directory, "llama")
        (directory / name).unlink(missing_ok=True)
        (directory / name).symlink_to(target)

    return make


def _sharded(file: str) -> Callable[[Path], None]:
    def make(directory: Path) -> None:
        make_checkpoint(directory, "llama", shards=2)
        index = directory / "model.safetensors.index.json"
        data = json.loads(index.read_text(encoding="utf-8"))
        data["weight_map"] = dict.fromkeys(data["weight_map"], file)
        write_json(index, data)

    return make


def _pipe(directory: Path) -> None:
    make_checkpoint(directory, "llama")
    (directory / "config.json").unlink()
    os.mkfifo(directory / "config.json")


def _pickled(directory: Path) -> None:
    make_checkpoint(directory, "llama")
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")


DIRECTORIES: dict[str, Callable[[Path], None]] = {
    "a licence that is somebody's key": _linked("LICENSE", "/etc/hostname"),
    "a model card that is the password file": _linked("README.md", "/etc/passwd"),
    "a template that is the password file": _linked("chat_template.jinja", "/etc/passwd"),
    "a tokenizer that is a device": _linked("tokenizer.json", "/dev/zero"),
    "weights that are a device": _linked("model.safetensors", "/dev/zero"),
    "a config that is a device": _linked("config.json", "/dev/urandom"),
    "a config that is a loop": _linked("config.json", "config.json"),
    "a config that is the directory": _linked("config.json", "."),
    "a config that is a pipe": _pipe,
    "a shard outside": _sharded("../other.safetensors"),
    "a shard at the root": _sharded("/etc/passwd.safetensors"),
    "a shard on a drive": _sharded("C:x.safetensors"),
    "a shard with NUL": _sharded("a\0.safetensors"),
    "pickles": _pickled,
}
"""Checkpoints, each with what writes it into a directory. Links and pipes need a POSIX system."""


def forms() -> dict[str, dict[str, str]]:
    """Arguments of an answer in a given form that would like to take all the time or memory. They may be refused or work."""
    deep = '{"type":"array","items":' * 5000 + "{}" + "}" * 5000
    wide = {"type": "object", "properties": {f"p{i}": {"type": "string", "pattern": "^[a-z]{1,50}$"} for i in range(1000)}}
    double: Any = {"type": "string"}
    for _ in range(12):
        double = {"anyOf": [double, {"type": "array", "items": double}]}
    chain = ",".join(f'"a{i}": {{"$r\\u0065f": "#/$defs/a{i + 1}"}}' for i in range(5000))
    crossed: Any = {"allOf": [{"anyOf": [{"type": "string", "pattern": f"^{c}*b{{{n}}}$"} for n in range(8)]} for c in "acdefgh"]}
    return {
        "a million letters": {"regex": "a{1000000}"},
        "nested repetition": {"regex": "(a{1000}){1000}"},
        "stars of stars": {"regex": "((((a*)*)*)*)*b"},
        "many ways": {"regex": "(a|aa)+$"},
        "counting anything": {"regex": "(.*a){200}"},
        "all of Unicode, many times": {"regex": r"(\\p{L}{1,200}\\p{N}{1,200}){1,200}"},
        "optional letters": {"regex": "a?" * 2000 + "a" * 20},
        "deep schema": {"json_schema": deep},
        "wide schema": {"json_schema": json.dumps(wide)},
        "doubling schema": {"json_schema": json.dumps(double)},
        "crossed schema": {"json_schema": json.dumps(crossed)},
        "a schema of itself": {"json_schema": '{"$defs":{"a":{"$ref":"#/$defs/a"}},"$ref":"#/$defs/a"}'},
        "a schema from elsewhere": {"json_schema": '{"$ref":"file:///etc/passwd"}'},
        "a hundred thousand words": {"json_schema": json.dumps({"enum": [f"word {i}" for i in range(30_000)]})},
        "items beyond counting": {"json_schema": '{"type":"array","minItems":1000000000}'},
        "ambiguous grammar": {"grammar": 'start: s\ns: s s s | "a" | "b" |'},
        "left and right": {"grammar": 'start: start start "x" | "x" start | "x"'},
        "five thousand rules": {"grammar": "start: r0\n" + "".join(f'r{i}: r{i + 1} | "a" r{i + 1}\n' for i in range(5000)) + 'r5000: "b"'},
        "five thousand references": {
            "json_schema": json.dumps({"$defs": {f"a{i}": {"$ref": f"#/$defs/a{i + 1}"} for i in range(5000)}, "$ref": "#/$defs/a0"})
        },
        "references spelled otherwise": {"grammar": 'start: %json {"$defs": {' + chain + '}, "$ref": "#/$defs/a0"}'},
        "a grammar of nothing": {"grammar": "start: start"},
    }
