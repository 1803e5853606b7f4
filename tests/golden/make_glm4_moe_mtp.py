#!/usr/bin/env python3
"""Writes the tiny random glm4_moe checkpoints with a draft layer, and what the draft layer says.

    python3 tests/golden/make_glm4_moe_mtp.py        needs torch and transformers 5

The folders and files are those of make_glm4_moe.py, and NAME.expected.safetensors holds besides

    mtp_ids      I32 [50]      the prompt shifted by one, then the first token of the continuation
    mtp_logits   F32 [50, V]   of the draft layer at every position

transformers has no forward of the draft layer (it skips the tensors), so its mathematics stands here,
around the library's own decoder layer:

    e = embed(id of the next token);  x = eh_proj [enorm(e) ; hnorm(h)]    embedding first
    x = decoder_layer(x);  logits = head(norm(x))

with h the hidden state after the model's final norm and a final norm of its own. Positions are those
of h; nothing is masked at position 0.
"""

import copy
import json
import math

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import Glm4MoeForCausalLM
from transformers.models.glm4_moe.modeling_glm4_moe import Glm4MoeDecoderLayer

import make_glm4_moe as plain

# copies: "own" matrices that differ from the model's, "equal" ones, or "absent" as in GLM-4.6.
CASES = {
    # As GLM-4.5: own copies, in the one file.
    "mtp_own": dict(
        style="hub", shards=1, dtype="float32", copies="own",
        hidden_size=32, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
        num_hidden_layers=2, first_k_dense_replace=1, intermediate_size=48,
        n_routed_experts=8, num_experts_per_tok=2, moe_intermediate_size=12,
        use_qk_norm=True, attention_bias=True, routed_scaling_factor=2.5, norm_topk_prob=True,
        rope_theta=1000000, partial_rotary_factor=0.5, vocab_size=144),
    # As GLM-4.6: no copies, and the layer in a file of its own.
    "mtp_absent": dict(
        style="hub", shards=1, dtype="float32", copies="absent",
        hidden_size=40, num_attention_heads=6, num_key_value_heads=1, head_dim=16,
        num_hidden_layers=3, first_k_dense_replace=2, intermediate_size=56,
        n_routed_experts=8, num_experts_per_tok=3, moe_intermediate_size=8,
        use_qk_norm=False, attention_bias=True, routed_scaling_factor=1.0, norm_topk_prob=True,
        rope_theta=1000000, partial_rotary_factor=0.5, vocab_size=160),
}


class Draft(nn.Module):
    """The draft layer under its names in a checkpoint, below model.layers.L."""

    def __init__(self, model, layer_class, copies):
        super().__init__()
        config = copy.deepcopy(model.config)
        self.index = config.num_hidden_layers
        if getattr(config, "mlp_layer_types", None):
            config.mlp_layer_types = config.mlp_layer_types + ["sparse"]
        self.layer = layer_class(config, self.index)
        norm_class = type(model.model.norm)
        width = config.hidden_size
        self.enorm = norm_class(width, config.rms_norm_eps)
        self.hnorm = norm_class(width, config.rms_norm_eps)
        self.eh_proj = nn.Linear(2 * width, width, bias=False)
        self.norm = norm_class(width, config.rms_norm_eps)
        self.copies = copies
        self.embed_tokens = copy.deepcopy(model.model.embed_tokens)
        self.head = copy.deepcopy(model.lm_head)

    def draw(self, seed):
        generator = torch.Generator().manual_seed(seed)
        for name, tensor in self.state_dict(keep_vars=True).items():
            if name in ("embed_tokens.weight", "head.weight") and self.copies != "own":
                continue
            noise = torch.randn(tensor.shape, generator=generator)
            if "norm" in name:
                noise = noise * 0.2 + 1
            elif name.endswith("e_score_correction_bias"):
                noise = noise * 0.15
            elif name.endswith("bias"):
                noise = noise * 0.5
            elif name != "embed_tokens.weight":
                noise = noise / math.sqrt(tensor.shape[-1])
            tensor.data.copy_(noise)

    def margin(self, logits):
        gate = self.layer.mlp.gate
        choice = (logits.sigmoid() + gate.e_score_correction_bias).sort(descending=True)[0]
        return (choice[:, gate.top_k - 1] - choice[:, gate.top_k]).min().item()

    @torch.no_grad()
    def forward(self, model, hidden, next_ids):
        """hidden [T, H] after the model's final norm, next_ids [T]; logits [T, V]."""
        count = next_ids.shape[0]
        x = self.eh_proj(torch.cat([self.enorm(self.embed_tokens(next_ids)), self.hnorm(hidden)], -1))
        positions = torch.arange(count)[None]
        mask = torch.full((count, count), float("-inf")).triu(1)[None, None]
        angles = model.model.rotary_emb(x[None], positions)
        seen = {}
        hook = self.layer.mlp.register_forward_pre_hook(lambda _, inputs: seen.update(x=inputs[0]))
        x = self.layer(x[None], attention_mask=mask, position_embeddings=angles,
                       position_ids=positions)
        hook.remove()
        x = (x[0] if isinstance(x, tuple) else x)[0]
        router = nn.functional.linear(seen["x"].reshape(count, -1).float(),
                                      self.layer.mlp.gate.weight.float())
        return self.head(self.norm(x)), self.margin(router)

    def hub_tensors(self):
        prefix = f"model.layers.{self.index}."
        tensors = {}
        for name, tensor in self.state_dict().items():
            tensor = tensor.detach()
            if name.endswith("experts.gate_up_proj"):
                for j, both in enumerate(tensor):
                    for part, value in zip(("gate_proj", "up_proj"), both.chunk(2)):
                        tensors[f"{prefix}mlp.experts.{j}.{part}.weight"] = value.clone()
            elif name.endswith("experts.down_proj"):
                for j, down in enumerate(tensor):
                    tensors[f"{prefix}mlp.experts.{j}.down_proj.weight"] = down.clone()
            elif name in ("embed_tokens.weight", "head.weight", "norm.weight"):
                if name == "norm.weight" or self.copies != "absent":
                    stem = name if name.startswith("embed") else "shared_head." + name
                    tensors[prefix + stem] = tensor.clone()
            else:
                tensors[prefix + name.removeprefix("layer.")] = tensor.clone()
        return tensors


def add_draft(folder, draft, dtype, separate):
    """Puts the layer's tensors beside the model's: into the one file, or into mtp.safetensors."""
    tensors = {n: t if n.endswith("e_score_correction_bias") else t.to(dtype)
               for n, t in draft.hub_tensors().items()}
    one = folder / "model.safetensors"
    if not separate:
        save_file(load_file(one) | tensors, one, metadata={"format": "pt"})
    else:
        index = folder / "model.safetensors.index.json"
        if index.exists():
            weight_map = json.loads(index.read_text())["weight_map"]
        else:
            weight_map = {n: one.name for n in load_file(one)}
        save_file(tensors, folder / "mtp.safetensors", metadata={"format": "pt"})
        weight_map |= {n: "mtp.safetensors" for n in tensors}
        index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}, indent=1) + "\n")
    config = json.loads((folder / "config.json").read_text())
    config["num_nextn_predict_layers"] = 1
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def expected_of_draft(model, draft, prompt, greedy):
    next_ids = torch.cat([prompt[1:], greedy[:1]])
    with torch.no_grad():
        hidden = model.model(input_ids=prompt[None], use_cache=False).last_hidden_state[0]
    logits, margin = draft(model, hidden, next_ids)
    return {"mtp_ids": next_ids.int(), "mtp_logits": logits.float()}, margin


def make_case(name, case):
    copies = case["copies"]
    keys = {k: v for k, v in case.items() if k != "copies"}
    for seed in range(1, 1000):
        model = Glm4MoeForCausalLM(plain.make_config(keys)).eval()
        plain.draw_weights(model, seed)
        prompt = torch.randint(0, case["vocab_size"], (plain.PROMPT,),
                               generator=torch.Generator().manual_seed(seed))
        logits, greedy, margins = plain.run(model, prompt)
        if margins <= 1 or len(set(greedy.tolist())) < plain.DISTINCT:
            continue
        draft = Draft(model, Glm4MoeDecoderLayer, copies).eval()
        draft.draw(seed)
        of_draft, margin = expected_of_draft(model, draft, prompt, greedy)
        if margin > plain.EXPERT_MARGIN:
            break
    folder = plain.OUT / name
    plain.write_folder(folder, keys, model)
    add_draft(folder, draft, torch.float32, separate=copies == "absent")
    expected = {"prompt_ids": prompt.int(), "greedy_ids": greedy.int(), "logits": logits} | of_draft
    save_file({n: t.contiguous() for n, t in expected.items()},
              plain.OUT / f"{name}.expected.safetensors")
    size = sum(f.stat().st_size for f in folder.iterdir())
    print(f"{name}: seed {seed}, margins {margins:.1f}x, logits std {logits.std():.2f}, of the draft "
          f"{of_draft['mtp_logits'].std():.2f}, {size / 1000:.0f} kB")


def main():
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    for name, case in CASES.items():
        make_case(name, case)


if __name__ == "__main__":
    main()
