"""Distils a tiny language model with the `GKDTrainer` of TRL, by its own loss and the student's: `make host HOST=trl_gkd`."""

import tempfile

import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer
from trl.experimental.gkd import GKDConfig, GKDTrainer

from loss_balancers.torch import EMANormalizedLossBalancer  # balancer
from loss_balancers.torch.transformers import BalancerCallback  # balancer

balancer = EMANormalizedLossBalancer(("student_loss", "JSDLoss_0"), beta=0.9, lagged=True)  # balancer
WORDS = "[PAD] [UNK] [EOS] user assistant zero one two three four five six seven eight nine plus is".split(" ")  # noqa: SIM905
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] + ' ' + m['content'] + ' [EOS] ' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant {% endif %}"
)


class Distiller(GKDTrainer):
    loss_is_scaled_for_ga = True  # the losses are sums over tokens, divided by the tokens of the whole step

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        kd, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        targets = inputs["labels"][:, 1:]
        tokens = targets.ne(-100).sum()
        whole = tokens if num_items_in_batch is None else num_items_in_batch
        ce = cross_entropy(outputs.logits[:, :-1].flatten(0, 1), targets.flatten(), reduction="sum") / whole
        loss = balancer({"student_loss": ce, "JSDLoss_0": kd}, share=tokens / whole)  # balancer
        return (loss, outputs) if return_outputs else loss


def language_model(width: int) -> LlamaForCausalLM:
    torch.manual_seed(width)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(WORDS), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=1, num_attention_heads=2,
            max_position_embeddings=64, pad_token_id=0, eos_token_id=2, bos_token_id=2,
        )
    )  # fmt: skip


def sums() -> Dataset:
    """Additions of two digits."""
    word = WORDS[5:15]
    pairs = [(a, b) for a in range(10) for b in range(10 - a)]
    asked = [f"{word[a]} plus {word[b]}" for a, b in pairs]
    told = [f"{question} is {word[a + b]}" for question, (a, b) in zip(asked, pairs, strict=True)]
    roles = ("user", "assistant")
    return Dataset.from_list(
        [
            {"messages": [{"role": role, "content": text} for role, text in zip(roles, both, strict=True)]}
            for both in zip(asked, told, strict=True)
        ]
    )


def tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = WhitespaceSplit()
    made = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]", eos_token="[EOS]")
    made.chat_template = TEMPLATE
    return made


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        given = {
            "use_cpu": True, "bf16": False, "report_to": "none", "disable_tqdm": True, "save_strategy": "no", "learning_rate": 0.01,
            "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "num_train_epochs": 8, "logging_steps": 14,
            "max_length": 32, "dataloader_pin_memory": False,
        }  # fmt: skip
        data = {"train_dataset": sums(), "processing_class": tokenizer()}
        teacher = SFTTrainer(language_model(32), SFTConfig(folder, **given), **data)
        teacher.train()
        student = Distiller(
            language_model(16), teacher.model, GKDConfig(folder, lmbda=0.0, **given), **data,
            callbacks=[BalancerCallback(balancer)],  # balancer
        )  # fmt: skip
        student.train()
        weights = {name: value for name, value in student.state.log_history[-2].items() if name.endswith("weight")}
        print("the last weights:", weights)


if __name__ == "__main__":
    main()
