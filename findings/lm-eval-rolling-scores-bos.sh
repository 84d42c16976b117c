#!/usr/bin/env bash
# lm-eval 0.4.13, HFLM.loglikelihood_rolling (wikitext, pile: word_perplexity, bits_per_byte): where the tokenizer puts BOS
# in front by itself (Llama, Gemma), BOS is counted among the tokens that are predicted, after the BOS that HFLM puts there as
# a prefix. So the log-prob of BOS after BOS is added to every text, about which it says nothing; short texts pay most.
# Seen: rolling = log-prob of the text + log-prob of BOS after BOS; with add_bos_token=False it is the first term alone.
# Asked for word perplexity, look at the ids, or pass add_bos_token=False (BOS is still the prefix).
set -euo pipefail
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
python3 -m venv "$here/env"
"$here/env/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0 tokenizers==0.23.3 lm-eval==0.4.13 accelerate==1.15.0
cd "$here"
"$here/env/bin/python" - <<'PY'
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

words = ["<unk>", "<s>", "</s>", "the", "river", "runs", "north"]
inner = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
inner.pre_tokenizer = pre_tokenizers.Whitespace()
inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
torch.manual_seed(0)
shape = {"vocab_size": len(words), "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
model = LlamaForCausalLM(LlamaConfig(**shape, num_attention_heads=2, bos_token_id=1, eos_token_id=2)).eval()

def logprob(ids):
    """Of every token after the first."""
    with torch.no_grad():
        every = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return sum(float(every[place, ids[place + 1]]) for place in range(len(ids) - 1))

def rolling(**more):
    asks = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1, **more)
    (value,) = asks.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, ("the river runs north",), 0)])
    return float(value[0] if isinstance(value, tuple) else value)

text, twice = logprob([1, 3, 4, 5, 6]), logprob([1, 1, 3, 4, 5, 6])
print(f"text after BOS {text:.4f}; text after BOS BOS, the second counted {twice:.4f}")
print(f"HFLM {rolling():.4f}; HFLM add_bos_token=False {rolling(add_bos_token=False):.4f}")
assert abs(rolling() - twice) < 1e-4, "lm-eval no longer counts BOS among the predicted tokens"
assert abs(rolling(add_bos_token=False) - text) < 1e-4
assert abs(text - twice) > 0.5
PY
