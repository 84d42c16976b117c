"""A setting is one annotated field: its flag, its help, its bounds and what it decides are read off it."""

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import pytest

from sae_forge.config.collect import CollectConfig
from sae_forge.config.fields import Alias, Artefact, Setting, described
from sae_forge.config.model import ModelConfig
from sae_forge.config.train import TrainConfig
from sae_forge.errors import ConfigError
from sae_forge.study.settings import eval_config, features_config, run_config

DECIDING: dict[Artefact, str] = {
    "shards": (
        "bos ctx_len dtype max_tokens model_batch_size normalize_text quantize revision shard_rows split "
        "storage_dtype text_field"
    ),
    "sae": (
        "auxk_alpha b_dec_init batch_size dead_after lr_decay lr_warmup max_disk_gb max_grad_norm sae_dtype shuffle_gb"
    ),
    "selection": (
        "activation_eps fire_threshold formula keep_form keep_sinks max_freq max_neutral_freq min_freq min_ratio "
        "min_target_fires moment "
        "p_ratio ratio_smoothing refusal_latent seed snippets sort_by"
    ),
    "attribution": (
        "attribution_candidates attribution_clamp attribution_max_broken attribution_sign forget_questions retain "
        "retain_questions scoring"
    ),
    "report": (
        "ablation_scale allow_pickle baseline_batch baseline_eps baseline_lr baseline_steps baseline_weight_decay "
        "bootstrap bos clamp_value compare_selections configurations controls crisp_layers crisp_sentences ctx_len "
        "dtype each_latent eos_targets eval_batch_size forget_eval forget_prompts forget_questions forget_tasks gate "
        "gate_percentile "
        "gate_policy gate_tokens gate_window generation_prompts half judge judge_prompts judge_rubric judge_tokens "
        "judge_topic judge_words keep_error keep_sinks knowmem_forget "
        "knowmem_retain knowmem_shots layer limit lm_eval_chat lm_eval_code lm_eval_folder lm_eval_shots loss_tokens "
        "max_new_tokens member_forget member_holdout memorised methods model neighbour_prompts neighbour_questions "
        "normalize_text num_features privleak_forget privleak_holdout privleak_reference quantise_bits quantize "
        "question_filter question_front question_template random_seeds refusal_value relearn_steps retain_eval "
        "retain_prompts retain_questions revision rmu_alpha rmu_coefficient rmu_mean scal scoring seed shot_questions "
        "shots site split steering sust sweep sweep_limit sweep_rule sweep_thresholds temperature text_field theta "
        "tofu_forget tofu_frame tofu_real_authors tofu_reference tofu_retain tofu_summaries tofu_world_facts tokens "
        "top_p value_units verbmem"
    ),
}
"""Settings that stand in an artefact's identity: another set, and what lies in run folders is not found again."""


@pytest.mark.parametrize("artefact", DECIDING)
def test_what_decides_an_artefact_is_frozen(artefact: Artefact) -> None:
    verbs = {"shards": CollectConfig, "sae": TrainConfig, "report": eval_config()}
    for config in (verbs.get(artefact, features_config())(), run_config()()):
        assert sorted(config.deciding(artefact)) == DECIDING[artefact].split()


def test_ranks_agree_on_all_but_where_things_are() -> None:
    config = TrainConfig()
    assert set(config.settings()) - set(config.settings(local=False)) == {
        "run_dir", "model_device", "sae_device", "device_map", "track",
    }  # fmt: skip


def test_whatever_an_evaluation_reads_counts_by_its_content() -> None:
    kinds = (
        "questions",
        "prompts",
        "eval",
        "verbmem",
        "knowmem",
        "privleak",
        "tofu",
        "lm_eval",
        "memorised",
        "member",
        "judge",
        "crisp",
        "scal",
        "sust",
    )
    named = {
        name
        for name, said in described(eval_config()).items()
        if said.kind == tuple[str, ...] and not name.endswith("tasks")
    }
    assert named == set(eval_config()().items("report"))
    assert all(any(kind in name for kind in kinds) for name in named)


@dataclass(frozen=True, kw_only=True)
class Part(ModelConfig):
    """Settings as a task or a method has them."""

    heading: ClassVar[str] = "Toys"

    toys: Annotated[tuple[int, ...], "Toys to play with.", Alias("dolls"), Setting(at_least=1, distinct=True)] = (1,)
    lid: Annotated[float | None, "How far the box is open.", Setting(above=0, below=1, decides=())] = None


def test_a_setting_is_one_annotated_field() -> None:
    said = described(Part)
    assert list(said)[-2:] == ["toys", "lid"]
    assert (said["toys"].heading, said["toys"].help, said["toys"].aliases) == ("Toys", "Toys to play with.", ("dolls",))
    assert (said["toys"].decides, said["lid"].decides) == (("report",), ())
    assert "lid" not in Part().deciding("report")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"toys": (0,)}, "--toys 0: give a value at least 1, each once"),
        ({"toys": (2, 2)}, "--toys 2,2: "),
        ({"toys": ()}, "--toys : "),
        ({"lid": 0.0}, "--lid 0.0: give a value above 0, below 1"),
        ({"lid": 1.0}, "--lid 1.0: "),
        ({"lid": float("nan")}, "--lid nan: "),
    ],
)
def test_bounds_are_kept_on_every_config(values: dict, words: str) -> None:
    with pytest.raises(ConfigError) as error:
        replace(Part(), **values)
    assert str(error.value).startswith(words)
    assert Part(lid=0.5, toys=(2, 1)).lid == 0.5


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"clamp_value": (-1.0,)},
            "--clamp_value -1.0: give finite values of 0 or more; latents are set to minus them",
        ),
        ({"clamp_value": ()}, "--clamp_value : give finite values of 0 or more; latents are set to minus them"),
        ({"baseline_lr": float("inf")}, "--baseline_lr inf: give a rate above 0"),
        ({"bootstrap": 99}, "--bootstrap 99: give at least 100 resamples"),
        ({"gate_percentile": 100.5}, "--gate_percentile 100.5: give a percentile between 0 and 100"),
        ({"knowmem_forget": ("a",), "knowmem_shots": ("a", "b", "c")}, "--knowmem_shots a,b,c: give one file, or"),
        ({"privleak_reference": 1.0}, "--privleak_reference 1.0: give an AUC between 0 and 1"),
        ({"theta": -1.0}, "--theta -1.0: give 0 or more"),
    ],
)
def test_messages_of_bounds_say_what_would_be_right(values: dict, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        eval_config()(**values)
    assert str(error.value).startswith(message)
