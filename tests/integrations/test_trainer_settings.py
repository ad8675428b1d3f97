"""Each setting of TrainingArguments and of Trainer acts in training as it does in Trainer, means nothing there, or is
refused when the trainer is built."""

import dataclasses
import inspect
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("accelerate")

from accelerate.state import AcceleratorState
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    DataCollatorForLanguageModeling,
    DataCollatorWithFlattening,
    DataCollatorWithPadding,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    default_data_collator,
)

from superpose import Schedule
from superpose.integrations import trainer_settings
from superpose.integrations.transformers import SuperposeTrainer
from tests.conftest import make_model
from tests.integrations.test_transformers import STEPS, arguments, losses, rows

REFUSED = {
    "max_steps": (STEPS + 1, "max_steps is 11, the schedule's total_steps 10"),
    "auto_find_batch_size": (True, "auto_find_batch_size would change what each step reads"),
    "neftune_noise_alpha": (5.0, "neftune_noise_alpha adds its noise where tokens are embedded one by one"),
    "train_sampling_strategy": ("sequential", "train_sampling_strategy is 'sequential', but a step's windows"),
    "group_by_length": (True, "group_by_length chooses rows, but a step's windows"),
    "ignore_data_skip": (True, "ignore_data_skip would resume with windows of the first steps"),
    "dataloader_in_order": (False, "dataloader_in_order=False would read windows in another order"),
    "deepspeed": ({"train_micro_batch_size_per_gpu": 4}, "DeepSpeed|deepspeed"),
    "use_liger_kernel": None,  # these below: they need what is not on every machine
    "fsdp": None,
    "average_tokens_across_devices": None,
    "parallelism_config": None,
    "accelerator_config": None,
}
ACTS = (
    "output_dir per_device_train_batch_size learning_rate lr_scheduler_type lr_scheduler_kwargs warmup_steps "
    "warmup_ratio optim optim_args weight_decay adam_beta1 adam_beta2 adam_epsilon optim_target_modules "
    "gradient_accumulation_steps max_grad_norm label_smoothing_factor bf16 fp16 bf16_full_eval fp16_full_eval "
    "tf32 activation_checkpointing activation_checkpointing_kwargs gradient_checkpointing "
    "gradient_checkpointing_kwargs torch_compile torch_compile_backend torch_compile_mode liger_kernel_config "
    "torch_empty_cache_steps include_num_input_tokens_seen logging_strategy logging_steps logging_first_step "
    "log_on_each_node logging_nan_inf_filter log_level log_level_replica disable_tqdm report_to run_name "
    "logging_dir project trackio_space_id trackio_bucket_id trackio_static_space_id eval_strategy eval_steps "
    "eval_delay per_device_eval_batch_size prediction_loss_only eval_on_start eval_do_concat_batches "
    "eval_use_gather_object eval_accumulation_steps include_for_metrics batch_eval_metrics label_names "
    "save_only_model save_strategy save_steps save_on_each_node save_total_limit enable_jit_checkpoint "
    "push_to_hub hub_token hub_private_repo hub_model_id hub_strategy hub_always_push hub_revision "
    "load_best_model_at_end metric_for_best_model greater_is_better restore_callback_states_from_checkpoint "
    "full_determinism seed data_seed use_cpu dataloader_num_workers dataloader_pin_memory "
    "dataloader_persistent_workers dataloader_prefetch_factor dataloader_multiprocessing_context "
    "remove_unused_columns ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph "
    "ddp_backend ddp_timeout fsdp_config debug skip_memory_metrics local_rank "
)
MEANINGLESS = {
    "num_train_epochs": "max_steps overrides it, in Trainer as well",
    "use_cache": "the loss never asks for a cache",
    "dataloader_drop_last": "no step of windows is incomplete; in evaluation it acts",
    "length_column_name": "of group_by_length, which is refused",
    "do_train": "of scripts, not of Trainer",
    "do_eval": "of scripts, not of Trainer",
    "do_predict": "of scripts, not of Trainer",
    "resume_from_checkpoint": "of scripts, not of Trainer",
}
OF_TRAINER = {
    "args": "acts",
    "model": "acts",
    "data_collator": "refused",
    "train_dataset": "acts",
    "eval_dataset": "acts",
    "processing_class": "acts",
    "model_init": "acts",
    "compute_loss_func": "refused",
    "compute_metrics": "acts",
    "callbacks": "acts",
    "optimizers": "acts",
    "optimizer_cls_and_kwargs": "acts",
    "preprocess_logits_for_metrics": "acts",
}
NAMES = {field.name for field in dataclasses.fields(TrainingArguments)}


def build(out, dataset=None, named=None, model=None, **settings):
    return SuperposeTrainer(
        model or make_model("llama"),
        arguments(out, **settings),
        train_dataset=rows() if dataset is None else dataset,
        schedule=Schedule(STEPS, 4, 0.4),
        **(named or {}),
    )


def refusal(out, *given, **settings):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        build(out, *given, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_every_setting_of_this_version_is_known():
    known = [*REFUSED, *ACTS.split(), *MEANINGLESS]
    assert set(known) >= NAMES
    assert len(known) == len(set(known))
    assert set(inspect.signature(Trainer).parameters) == set(OF_TRAINER)


@pytest.mark.parametrize("name", sorted(name for name in REFUSED if REFUSED[name] and name in NAMES))
def test_a_setting_that_would_be_ignored_is_refused(tmp_path, name):
    value, message = REFUSED[name]
    try:
        with pytest.raises((ValueError, ImportError), match=message):
            build(tmp_path, **{name: value})
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"split_batches": True}, "split_batches is not supported; count the rows of one process"),
        ({"dispatch_batches": True}, "dispatch_batches is not supported"),
        ({"use_seedable_sampler": False}, "use_seedable_sampler=False chooses a sampler"),
    ],
)
def test_settings_of_accelerate_that_would_be_ignored(tmp_path, setting, message):
    assert message in refusal(tmp_path, accelerator_config=setting)
    build(tmp_path, accelerator_config={"even_batches": False, "non_blocking": True})


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"args.world_size": 2, "args.average_tokens_across_devices": False}, "average_tokens_across_devices=False"),
        ({"args.use_liger_kernel": True}, "use_liger_kernel would put a forward pass with its own loss"),
        ({"args.n_gpu": 2}, "several GPUs in one process"),
        ({"is_deepspeed_enabled": True}, "DeepSpeed is not supported"),
        ({"is_fsdp_xla_enabled": True}, "FSDP on XLA is not supported"),
        ({"args.fsdp": True}, "fsdp would be ignored"),
        ({"get_tp_size": lambda: 2}, "tensor, context and sequence parallelism"),
        ({"get_cp_size": lambda: 2}, "tensor, context and sequence parallelism"),
        ({"get_sp_size": lambda: 2}, "tensor, context and sequence parallelism"),
        ({"is_distributed_loading_by_transformers": True}, "tensor, context and sequence parallelism"),
    ],
)
def test_what_this_machine_cannot_have_is_refused_as_well(tmp_path, changed, message):
    trainer = build(tmp_path)
    args = SimpleNamespace(**vars(trainer.args), n_gpu=1, world_size=1)
    stand_in = SimpleNamespace(**{**vars(trainer), "args": args})
    trainer_settings.check_arguments(stand_in, STEPS)
    for name, value in changed.items():
        setattr(args if name.startswith("args.") else stand_in, name.removeprefix("args."), value)
    with pytest.raises(ValueError, match=message):
        trainer_settings.check_arguments(stand_in, STEPS)


def test_a_loss_of_ones_own_is_refused(tmp_path):
    assert "compute_loss_func would not be called" in refusal(tmp_path, named={"compute_loss_func": lambda *_: 1 / 0})


def tokenizer(pad):
    words = WordLevel({str(number): number for number in range(50)})
    made = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words))
    made.pad_token = str(pad)
    return made


def test_a_collator_that_would_change_what_is_trained_is_refused(tmp_path):
    def mine(batch):
        return default_data_collator(batch)

    masking = DataCollatorForLanguageModeling(tokenizer(0), mlm=False)
    masking.mlm = True
    for collator in (mine, DataCollatorWithFlattening(), masking):
        name = "mine" if collator is mine else type(collator).__name__
        assert f"data_collator is {name}, which would not be called" in refusal(
            tmp_path, named={"data_collator": collator}
        )
    plain = build(tmp_path)
    plain.train()
    for collator in (None, default_data_collator, DataCollatorWithPadding(tokenizer(0))):
        trainer = build(tmp_path, named={"data_collator": collator})
        trainer.train()
        assert losses(trainer) == losses(plain)
    trainer.data_collator = mine  # for evaluation alone
    trainer.get_train_dataloader()


@pytest.mark.error(n=5)
def test_a_collator_for_language_models_takes_its_padding_out_of_the_targets(tmp_path):
    """As Trainer does: labels are -100 wherever the token that pads stands, and here also at ends of texts."""
    collator = DataCollatorForLanguageModeling(tokenizer(7), mlm=False)
    labelled = [{**row, "labels": [-100 if t == 7 else t for t in row["input_ids"]]} for row in rows()]
    by_collator, by_labels, plain = (
        build(tmp_path, named={"data_collator": collator}),
        build(tmp_path, labelled),
        build(tmp_path),
    )
    for trainer in (by_collator, by_labels, plain):
        trainer.train()
    assert losses(by_collator) == losses(by_labels) != losses(plain)
    assert "writes labels over those of train_dataset" in refusal(tmp_path, labelled, {"data_collator": collator})


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ("position_ids", "position_ids goes to the model's forward pass"),
        ("inputs_embeds", "inputs_embeds goes to the model's forward pass"),
        ("loss_weight", "loss_weight would weigh nothing"),
        ("completion_mask", "completion_mask would weigh nothing"),
    ],
)
def test_columns_that_would_be_ignored_are_refused(tmp_path, column, message):
    given = [{**row, column: [1] * len(row["input_ids"])} for row in rows()]
    assert message in refusal(tmp_path, given)


def test_columns_that_trainer_drops_as_well(tmp_path):
    given = [{**row, "special_tokens_mask": [0] * len(row["input_ids"]), "text": ""} for row in rows()]
    build(tmp_path, given)
    assert "leave remove_unused_columns at True" in refusal(tmp_path, given, remove_unused_columns=False)


class Streamed(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter(rows())


def test_what_does_not_fit_a_streamed_dataset_is_refused(tmp_path):
    assert "give latents, the positions of a row" in refusal(tmp_path, Streamed())
    assert "dataloader_num_workers is not for a streamed" in refusal(tmp_path, Streamed(), dataloader_num_workers=1)
    assert "object, which has neither a length nor rows to go through" in refusal(tmp_path, object())
