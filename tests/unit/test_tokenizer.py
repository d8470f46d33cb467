"""Encoding as the library does it, and streaming that never says anything else than decoding all at once."""

import json
from pathlib import Path
from random import Random

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from checkpoints import write_json, write_tokenizer
from edgekit.artifact import EncodeVector
from edgekit.confine import Here
from edgekit.errors import ArtifactError, ContextOverflow, UsageError
from edgekit.runtime.chat import WORK
from edgekit.runtime.tokenizer import Tokenizer, check_tokenizer, open_tokenizer
from tokenizer_folders import llama

TEXT = "naïve café, Zürich\n\n 你好,世界 👩\u200d👩\u200d👧 🇨🇭  the light\tis on \ufffd!"


@pytest.fixture(scope="module", params=["prepend", "metaspace", "bytelevel"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Without a process of its own, which 100,000 requests would have to wait for; test_confine.py and all other tests have one."""
    directory = tmp_path_factory.mktemp(request.param)
    if request.param != "bytelevel":
        return open_tokenizer(llama(directory, request.param), bos=1, process=Here(WORK))
    write_json(directory / "config.json", {})
    write_tokenizer(directory)
    return open_tokenizer(directory, bos=1, process=Here(WORK))


def streamed(tokenizer: Tokenizer, ids: list[int], context: list[int]) -> list[str]:
    stream = tokenizer.stream(context)
    return [*(stream.push(i) for i in ids), stream.finish()]


def test_text_streams_whole_characters(tokenizer: Tokenizer) -> None:
    pieces = streamed(tokenizer, tokenizer.encode(TEXT), [])
    assert "".join(pieces) == tokenizer.decode(tokenizer.encode(TEXT)) == TEXT
    assert all("\ufffd" not in piece or "\ufffd!" in piece or piece == "\ufffd" for piece in pieces)
    assert sum(1 for piece in pieces if piece) > 20, "it streams"


@settings(max_examples=400, deadline=None)
@given(seed=st.integers(0, 1 << 32), length=st.integers(0, 60), kind=st.integers(0, 2))
def test_any_tokens_stream_to_their_decoding(tokenizer: Tokenizer, seed: int, length: int, kind: int) -> None:
    """Random tokens cut characters anywhere, mix in special tokens and ids beyond the vocabulary, and break byte runs."""
    random = Random(seed)
    size = tokenizer.backend.get_vocab_size()
    text = tokenizer.encode(TEXT)
    pool = [range(size + 5), [*tokenizer.bytes_, *range(4), size - 1, *text[:5]], [*text, 2, size]][kind]
    ids = [random.choice(pool) for _ in range(length)]
    assert "".join(streamed(tokenizer, ids, [])) == tokenizer.decode(ids)


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 1 << 32), length=st.integers(0, 60))
def test_what_is_decoded_here_is_what_the_library_decodes(tokenizer: Tokenizer, seed: int, length: int) -> None:
    """A byte-level vocabulary's tokens are put together without asking the other process."""
    random, size = Random(seed), tokenizer.backend.get_vocab_size()
    ids = [random.randrange(size + 5) for _ in range(length)]
    assert tokenizer.decode(ids) == tokenizer.backend.decode(ids, skip_special_tokens=True)


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=300))
def test_no_text_has_fewer_tokens_than_is_reckoned(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.backend.fewest(text) <= len(tokenizer.encode(text))


def test_what_cannot_fit_is_not_encoded(tokenizer: Tokenizer) -> None:
    with pytest.raises(ContextOverflow, match=r"at least [0-9]+ tokens; the context holds 96"):
        tokenizer.encode("word" * 100_000, most=96)
    assert len(tokenizer.encode("word", most=96)) <= 96


def test_half_a_character_is_an_error_of_its_own(tokenizer: Tokenizer) -> None:
    with pytest.raises(UsageError, match="half a character"):
        tokenizer.encode("a\ud800")


@settings(max_examples=300, deadline=None)
@given(seed=st.integers(0, 1 << 32), cut=st.floats(0, 1), length=st.integers(1, 200))
def test_a_continuation_completes_the_text_of_its_prompt(tokenizer: Tokenizer, seed: int, cut: float, length: int) -> None:
    """Also where the cut is inside a character: then it is shown as a whole, after it."""
    random = Random(seed)
    text = "".join(random.choice(TEXT.replace("\ufffd", "") + "abc     ") for _ in range(length)).strip() or "x"
    ids = tokenizer.encode(text)
    prompt, rest = ids[: int(cut * len(ids))], ids[int(cut * len(ids)) :]
    shown = tokenizer.decode(prompt)
    while shown.endswith("\ufffd"):
        shown = shown[:-1]
    if prompt:
        assert shown + "".join(streamed(tokenizer, rest, prompt)) == tokenizer.decode(ids)


def test_a_special_token_ends_the_context(tmp_path: Path) -> None:
    """After ``<|user|>`` a word starts a text; after a word it continues one."""
    phi = open_tokenizer(llama(tmp_path, "prepend"))
    word = phi.backend.token_to_id("▁the")
    assert "".join(streamed(phi, [word], [word, 3])) == "the"
    assert "".join(streamed(phi, [word], [word])) == " the"
    assert phi.decode([word, 3, word]) == "the the", "which is why the context has to end there"


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 1 << 32), before=st.integers(0, 20), after=st.integers(0, 20))
def test_after_a_special_token_the_text_is_that_of_the_tokens_alone(tokenizer: Tokenizer, seed: int, before: int, after: int) -> None:
    random, size = Random(seed), tokenizer.backend.get_vocab_size()
    context, ids = ([random.randrange(size) for _ in range(count)] for count in (before, after))
    special = random.choice(sorted(tokenizer.silent))
    assert "".join(streamed(tokenizer, ids, [*context, special])) == tokenizer.decode(ids)


def test_encode_recognizes_special_tokens_and_adds_bos_when_asked(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("hi", add_bos=True) == [1, *tokenizer.encode("hi")]
    end = tokenizer.backend.token_to_id("<|end|>")
    assert tokenizer.encode("a<|end|>")[-1] == end
    assert tokenizer.decode([*tokenizer.encode("a"), end]) == "a"


def test_the_file_cannot_cut_or_pad_a_prompt(tmp_path: Path) -> None:
    path = llama(tmp_path, "prepend") / "tokenizer.json"
    backend = tokenizers.Tokenizer.from_file(str(path))
    backend.enable_truncation(3)
    backend.enable_padding(length=50)
    backend.save(str(path))
    assert (
        len(open_tokenizer(tmp_path).encode("the light is on"))
        == len(open_tokenizer(llama(tmp_path, "prepend")).encode("the light is on"))
        > 3
    )


def test_conformance_vectors_are_compared(tokenizer: Tokenizer) -> None:
    good = EncodeVector("the light", tuple(tokenizer.encode("the light")))
    check_tokenizer(tokenizer, [good])
    with pytest.raises(ArtifactError, match=r"'the light' into .* the manifest says \[7\]"):
        check_tokenizer(tokenizer, [good, EncodeVector("the light", (7,))])


@pytest.mark.parametrize("content", ["", "{", "[]", '{"version": "1.0"}', "null", "[" * 100_000, '{"model": {"type": "BPE", "vocab": 3}}'])
def test_a_file_that_does_not_parse_is_an_artifact_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content, encoding="utf-8")
    with pytest.raises(ArtifactError, match=r"tokenizer\.json"):
        open_tokenizer(tmp_path)


def test_a_missing_file_is_an_artifact_error(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="missing"):
        open_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "decoder", [None, {"type": "WordPiece", "prefix": "##", "cleanup": True}, {"type": "Strip", "content": " ", "start": 0, "stop": 1}]
)
def test_a_decoder_that_cannot_stream_is_refused(tmp_path: Path, decoder: object) -> None:
    path = llama(tmp_path, "prepend") / "tokenizer.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    write_json(path, data | {"decoder": decoder})
    with pytest.raises(ArtifactError, match="decoder"):
        open_tokenizer(tmp_path)
