#!/usr/bin/env python3
"""Writes the tiny random glm4_moe checkpoints of tests/golden/glm4_moe and what transformers says of them.

    python3 tests/golden/make_glm4_moe.py        needs torch and transformers 5

Each case is a folder in the format of the hub (config.json, safetensors with one tensor per expert,
generation_config.json) and a file NAME.expected.safetensors:

    prompt_ids   I32 [50]      the prompt
    logits       F32 [50, V]   of every prompt position, computed in the checkpoint's type
    logits_f32   F32 [50, V]   only for BF16 checkpoints: the same weights computed in float32
    greedy_ids   I32 [64]      greedy continuation of the prompt, computed in float32

rope.expected.safetensors holds cosines and sines of the reference at far positions.

The weights are drawn so that every part matters and logits have a standard deviation near 1. A seed
is taken only if no decision of the run is close: the chosen experts and the greedy tokens must be
apart from the next best by a margin, so that another order of float sums cannot flip them.
"""

import json
import math
import pathlib
import shutil

import torch
import transformers
from safetensors.torch import save_file
from transformers import Glm4MoeConfig, Glm4MoeForCausalLM
from transformers.models.glm4_moe.modeling_glm4_moe import Glm4MoeRotaryEmbedding

OUT = pathlib.Path(__file__).parent / "glm4_moe"
PROMPT = 50
CONTINUATION = 64
EXPERT_MARGIN = 2e-5
TOKEN_MARGIN = 2e-3
DISTINCT = 12  # different tokens in a continuation: random models like to run in circles

# name -> config keys, and how the folder is written. hub: rotary keys at the top, as in the
# published configs; new: as transformers 5 writes them.
CASES = {
    # As GLM-4.5 to 4.7: q/k norm, biases, three dense layers, scaling.
    "norm_bias": dict(
        style="hub", shards=1, dtype="float32",
        hidden_size=40, num_attention_heads=6, num_key_value_heads=2, head_dim=16,
        num_hidden_layers=5, first_k_dense_replace=3, intermediate_size=80,
        n_routed_experts=16, num_experts_per_tok=4, moe_intermediate_size=12,
        use_qk_norm=True, attention_bias=True, routed_scaling_factor=2.5, norm_topk_prob=True,
        rope_theta=1000000, partial_rotary_factor=0.5, vocab_size=176),
    # As GLM-4.5-Air: no q/k norm, biases, one dense layer; one kv head for six.
    "air": dict(
        style="new", shards=1, dtype="float32",
        hidden_size=40, num_attention_heads=6, num_key_value_heads=1, head_dim=16,
        num_hidden_layers=3, first_k_dense_replace=1, intermediate_size=72,
        n_routed_experts=8, num_experts_per_tok=2, moe_intermediate_size=24,
        use_qk_norm=False, attention_bias=True, routed_scaling_factor=1.0, norm_topk_prob=True,
        rope_theta=1000000, partial_rotary_factor=0.5, vocab_size=256),
    # What no release has but the format allows: a kv head per query head, no bias, weights of
    # the experts not normalised, tied embeddings, a rotated part of 6 of 24 values; two shards.
    "tied": dict(
        style="hub", shards=2, dtype="float32",
        hidden_size=32, num_attention_heads=4, num_key_value_heads=4, head_dim=24,
        num_hidden_layers=4, first_k_dense_replace=1, intermediate_size=64,
        n_routed_experts=12, num_experts_per_tok=3, moe_intermediate_size=16,
        use_qk_norm=True, attention_bias=False, routed_scaling_factor=1.5, norm_topk_prob=False,
        rope_theta=10000, partial_rotary_factor=0.25, vocab_size=160, tie_word_embeddings=True),
    # BF16 weights in three shards.
    "bfloat16": dict(
        style="hub", shards=3, dtype="bfloat16",
        hidden_size=64, num_attention_heads=8, num_key_value_heads=2, head_dim=16,
        num_hidden_layers=4, first_k_dense_replace=1, intermediate_size=96,
        n_routed_experts=16, num_experts_per_tok=4, moe_intermediate_size=16,
        use_qk_norm=True, attention_bias=True, routed_scaling_factor=2.5, norm_topk_prob=True,
        rope_theta=1000000, partial_rotary_factor=0.5, vocab_size=224),
}


def make_config(case):
    keys = {k: v for k, v in case.items()
            if k not in ("style", "shards", "dtype", "rope_theta", "partial_rotary_factor")}
    config = Glm4MoeConfig(
        **keys, num_nextn_predict_layers=0, max_position_embeddings=4096, rms_norm_eps=1e-5,
        eos_token_id=[1, 3, 5], pad_token_id=1,
        rope_parameters=dict(rope_type="default", rope_theta=float(case["rope_theta"]),
                             partial_rotary_factor=case["partial_rotary_factor"]))
    config._attn_implementation = "eager"
    config._experts_implementation = "eager"
    return config


def draw_weights(model, seed):
    generator = torch.Generator().manual_seed(seed)

    def normal(tensor, std, mean=0.0):
        tensor.data.copy_(torch.randn(tensor.shape, generator=generator) * std + mean)

    for name, tensor in model.state_dict(keep_vars=True).items():
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        if name.endswith("norm.weight") or "layernorm" in name:
            normal(tensor, 0.2, 1.0)
        elif name.endswith("e_score_correction_bias"):
            normal(tensor, 0.15)
        elif name.endswith("bias"):
            normal(tensor, 0.5)
        elif name.endswith("embed_tokens.weight"):
            tied = model.config.tie_word_embeddings
            normal(tensor, 1 / math.sqrt(model.config.hidden_size) if tied else 1.0)
        else:
            normal(tensor, 1 / math.sqrt(tensor.shape[-1]))


def expert_margin(model, outputs):
    """Distance of the last chosen expert to the first one left out, over all tokens and layers."""
    margin = float("inf")
    routers = [layer.mlp.gate for layer in model.model.layers
               if hasattr(layer.mlp, "gate")]
    for router, logits in zip(routers, outputs.router_logits, strict=True):
        choice = (logits.float().sigmoid() + router.e_score_correction_bias).sort(descending=True)[0]
        k = router.top_k
        margin = min(margin, (choice[:, k - 1] - choice[:, k]).min().item())
    return margin


@torch.no_grad()
def run(model, prompt):
    """All logits of the prompt, the greedy continuation, and how close its decisions were."""
    ids = prompt.clone()
    token_margin = float("inf")
    prompt_logits = None
    for _ in range(CONTINUATION):
        logits = model(input_ids=ids[None], use_cache=False).logits[0].float()
        if prompt_logits is None:
            prompt_logits = logits
        best = logits[-1].topk(2)
        token_margin = min(token_margin, (best.values[0] - best.values[1]).item())
        ids = torch.cat([ids, best.indices[:1]])
    outputs = model(input_ids=ids[None], use_cache=False, output_router_logits=True)
    return prompt_logits, ids[PROMPT:], min(token_margin / TOKEN_MARGIN,
                                            expert_margin(model, outputs) / EXPERT_MARGIN)


def hub_tensors(model):
    """The state under the names of published checkpoints: one tensor per expert."""
    tensors = {}
    for name, tensor in model.state_dict().items():
        tensor = tensor.detach()
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        if name.endswith("experts.gate_up_proj"):
            for j, both in enumerate(tensor):
                gate, up = both.chunk(2)
                stem = name.removesuffix("gate_up_proj") + f"{j}."
                tensors[stem + "gate_proj.weight"] = gate.clone()
                tensors[stem + "up_proj.weight"] = up.clone()
        elif name.endswith("experts.down_proj"):
            for j, down in enumerate(tensor):
                tensors[name.removesuffix("down_proj") + f"{j}.down_proj.weight"] = down.clone()
        else:
            tensors[name] = tensor.clone()
    return tensors


def write_folder(folder, case, model):
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    config = json.loads(model.config.to_json_string())
    config["architectures"] = ["Glm4MoeForCausalLM"]
    config.pop("dtype", None)
    if case["style"] == "hub":
        config.pop("rope_parameters")
        config |= dict(rope_theta=case["rope_theta"], rope_scaling=None,
                       partial_rotary_factor=case["partial_rotary_factor"],
                       torch_dtype=case["dtype"])
    else:
        config["dtype"] = case["dtype"]
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    (folder / "generation_config.json").write_text(
        json.dumps({"eos_token_id": [2, 4], "pad_token_id": 2}, indent=2) + "\n")

    dtype = getattr(torch, case["dtype"])
    tensors = {n: t if n.endswith("e_score_correction_bias") else t.to(dtype)
               for n, t in hub_tensors(model).items()}
    shards = case["shards"]
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return
    names = sorted(tensors)
    weight_map = {}
    for i in range(shards):
        part = names[i * len(names) // shards:(i + 1) * len(names) // shards]
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        save_file({n: tensors[n] for n in part}, folder / file, metadata={"format": "pt"})
        weight_map |= {n: file for n in part}
    size = sum(t.numel() * t.element_size() for t in tensors.values())
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": size}, "weight_map": weight_map}, indent=1) + "\n")


def make_case(name, case):
    dtype = getattr(torch, case["dtype"])
    for seed in range(1, 1000):
        model = Glm4MoeForCausalLM(make_config(case)).eval()
        draw_weights(model, seed)
        prompt = torch.randint(0, case["vocab_size"], (PROMPT,),
                               generator=torch.Generator().manual_seed(seed))
        if dtype == torch.bfloat16:  # the checkpoint's values, computed in float32
            for tensor_name, tensor in model.state_dict().items():
                if not tensor_name.endswith("e_score_correction_bias"):
                    tensor.copy_(tensor.bfloat16().float())
        logits, greedy, margins = run(model, prompt)
        if margins > 1 and len(set(greedy.tolist())) >= DISTINCT:
            break
    expected = {"prompt_ids": prompt.int(), "greedy_ids": greedy.int(), "logits": logits}
    folder = OUT / name
    write_folder(folder, case, model)

    # The names are those of the hub if the library finds every tensor under them.
    loaded, report = Glm4MoeForCausalLM.from_pretrained(
        folder, dtype=dtype, attn_implementation="eager", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"], report
    loaded.config._experts_implementation = "eager"
    with torch.no_grad():
        again = loaded.eval()(input_ids=prompt[None], use_cache=False).logits[0].float()
    difference = (again - logits).abs().max().item()
    if dtype == torch.bfloat16:
        expected |= {"logits": again, "logits_f32": logits}
    else:
        assert difference < 1e-5, difference
    save_file({n: t.contiguous() for n, t in expected.items()}, OUT / f"{name}.expected.safetensors")
    size = sum(f.stat().st_size for f in folder.iterdir())
    print(f"{name}: seed {seed}, margins {margins:.1f}x, logits std {logits.std():.2f}, "
          f"{len(set(greedy.tolist()))} distinct greedy tokens, {size / 1000:.0f} kB, "
          f"reloaded in {case['dtype']}: max difference {difference:.1e}")


def make_rope():
    """Rotary angles of the real models, at positions where a faulty table shows."""
    config = Glm4MoeConfig(head_dim=128, rope_parameters=dict(
        rope_type="default", rope_theta=1e6, partial_rotary_factor=0.5))
    positions = torch.tensor([0, 1, 2, 63, 511, 4095, 32767, 131071, 202751])
    cosines, sines = Glm4MoeRotaryEmbedding(config)(torch.zeros(1), positions[None])
    save_file({"positions": positions.int(), "cosines": cosines[0, :, :32].contiguous(),
               "sines": sines[0, :, :32].contiguous()}, OUT / "rope.expected.safetensors")


def main():
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    OUT.mkdir(parents=True, exist_ok=True)
    make_rope()
    for name, case in CASES.items():
        make_case(name, case)


if __name__ == "__main__":
    main()
