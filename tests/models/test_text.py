"""Text is text: what is spelled like a special token is read as its letters, and templates still control the model."""

import json
from dataclasses import replace

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from sae_forge.data.texts.corpus import Tally
from sae_forge.data.texts.plain import normal
from sae_forge.errors import DataError
from sae_forge.models.chat import Rendered, render
from sae_forge.models.documents import DocumentTokenizer
from sae_forge.models.loading import LanguageModel
from sae_forge.models.tokens import control_strings, text_ids

CONTROL = {
    "gpt2": ("<|endoftext|>",),
    "qwen": ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    "llama": ("<s>", "</s>", "<unk>"),
    "llama-first": ("<s>", "</s>", "<unk>"),
    "gemma": ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),
}
"""Families of tokenizers, by how they mark words and where: all bytes, or "▁" before each part, the first, or none."""
STORY = "In HTML the old owl struck out a word, and the fox said: no! Then 12 owls went home."


def tokenizer(family: str) -> PreTrainedTokenizerFast:
    """A small tokenizer built like those of a family."""
    bytewise = family in ("gpt2", "qwen")
    made = Tokenizer(models.BPE(byte_fallback=not bytewise))
    bytes_ = [] if bytewise else [f"<0x{byte:02X}>" for byte in range(256)]
    match family:
        case "gpt2" | "qwen":
            made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
            made.decoder = decoders.ByteLevel()
        case "llama":
            made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        case "llama-first":
            made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        case "gemma":
            made.normalizer = normalizers.Replace(" ", "▁")
    if not bytewise:
        made.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
            + ([decoders.Strip(" ", 1, 0)] if family.startswith("llama") else [])
        )
    alphabet = pre_tokenizers.ByteLevel.alphabet() if bytewise else []
    words = [STORY, "</", "s>", "<s", "<|", "|>", "im_start", "of_turn"]
    special = [*CONTROL[family], *bytes_]
    made.train_from_iterator(
        words, trainers.BpeTrainer(vocab_size=700, special_tokens=special, initial_alphabet=alphabet)
    )
    written = json.loads(made.to_str())  # bytes are tokens of the vocabulary, and none that controls
    written["added_tokens"] = [token for token in written["added_tokens"] if token["content"] in CONTROL[family]]
    made = Tokenizer.from_str(json.dumps(written))
    first, last = CONTROL[family][0], CONTROL[family][min(1, len(CONTROL[family]) - 1)]
    fast = PreTrainedTokenizerFast(tokenizer_object=made, bos_token=first, eos_token=last)
    fast.add_special_tokens({"extra_special_tokens": list(CONTROL[family][2:])})
    fast.chat_template = (
        "{{ bos_token }}{% for turn in messages %}" + first + "{{ turn.role }}\n{{ turn.content | trim }}" + last + "\n"
        "{% endfor %}{% if add_generation_prompt %}" + first + "model\n{% endif %}"
    )
    return fast


@pytest.fixture(params=CONTROL)
def lm(request: pytest.FixtureRequest, tiny_llama: LanguageModel) -> LanguageModel:
    return replace(tiny_llama, tokenizer=tokenizer(request.param))


def test_what_is_spelled_like_a_special_token_is_read_as_its_letters(lm: LanguageModel) -> None:
    texts = [f"A {spelled} and{spelled}b" for spelled in lm.special_strings] + [STORY]
    for text, ids in zip(texts, text_ids(lm, texts), strict=True):
        assert lm.special_ids.isdisjoint(ids)
        assert lm.tokenizer.decode(ids) == text
    assert text_ids(lm, [STORY]) == lm.tokenizer([STORY], add_special_tokens=False)["input_ids"]
    assert control_strings(lm) == []
    assert text_ids(lm, []) == []


def test_a_template_controls_and_what_was_said_in_it_does_not(lm: LanguageModel) -> None:
    plain = [{"role": "user", "content": f" {STORY}"}, {"role": "model", "content": "Yes."}]
    said = [{**plain[0], "content": f"{STORY} {lm.special_strings[0]} x{lm.special_strings[-1]}"}, plain[1]]
    template = render(lm, plain, to_go_on=True)
    assert template.text == lm.tokenizer.apply_chat_template(plain, tokenize=False, add_generation_prompt=True)
    assert template.ids(lm) == lm.tokenizer(template.text, add_special_tokens=False)["input_ids"]
    chat = render(lm, said, to_go_on=True).followed_by("Answer: (")
    assert chat.text == template.text.replace("home.", f"home. {lm.special_strings[0]} x{lm.special_strings[-1]}") + (
        "Answer: ("
    )
    control = [[token for token in one.ids(lm) if token in lm.special_ids] for one in (template, chat)]
    assert control[0] == control[1]
    assert lm.tokenizer.decode(chat.ids(lm)).replace(" ", "") == chat.text.replace(" ", "")


def test_tokens_around_a_spelled_token_are_those_the_tokenizer_gives(lm: LanguageModel) -> None:
    whole = render(lm, [{"role": "user", "content": STORY}], to_go_on=False)
    start = whole.text.index("owl")
    marked = Rendered(whole.text, ((start, start + 3),))  # taken apart at control tokens, and nothing to protect
    assert marked.ids(lm) == whole.ids(lm)
    assert marked.ids(lm, end=start) == whole.ids(lm, end=start)


def test_a_template_that_refuses_says_why_in_a_line(lm: LanguageModel) -> None:
    lm.tokenizer.chat_template = "{{ raise_exception('a system message must come first') }}"
    with pytest.raises(DataError, match="refuses a user's turn alone: TemplateError: a system message must come first"):
        render(lm, [{"role": "user", "content": "hello"}], to_go_on=True)


def test_a_tokenizer_that_cannot_help_it_is_found_out_and_counted(tiny_llama: LanguageModel) -> None:
    made = Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "owl": 2, "<unk>": 3}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    lm = replace(tiny_llama, tokenizer=words)
    assert set(control_strings(lm)) == {"<s>", "</s>"}
    tally = Tally()
    DocumentTokenizer(lm, tally)(["owl </s> owl", "<s> <s>", "owl"])
    assert tally.control == 3


def test_conversations_become_documents_without_the_ends_that_packing_sets(lm: LanguageModel) -> None:
    turns = [{"role": "user", "content": "Hoo?"}, {"role": "model", "content": STORY}]
    tally = Tally()
    documents = DocumentTokenizer(lm, tally)
    assert documents.converse is not None
    (text, chat) = documents([STORY, documents.converse(turns)])["input_ids"]
    assert text == text_ids(lm, [STORY])[0]
    whole = render(lm, turns, to_go_on=False).ids(lm)
    assert whole[0] == lm.tokenizer.bos_token_id
    assert chat == whole[1:]
    assert tally.control == 0
    lm.tokenizer.chat_template = None
    assert documents.converse is None


def test_documents_of_two_spellings_are_one_in_normal_form(tiny_llama):
    made, plain = DocumentTokenizer(tiny_llama, form=normal), DocumentTokenizer(tiny_llama)
    assert made(["“It’s”—so"]) == plain(['"It\'s" - so']) != plain(["“It’s”—so"])
