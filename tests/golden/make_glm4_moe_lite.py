#!/usr/bin/env python3
"""Writes the tiny random glm4_moe_lite checkpoints of tests/golden/glm4_moe_lite (the architecture of
GLM-4.7-Flash), and what transformers says of them.

    python3 tests/golden/make_glm4_moe_lite.py        needs torch and transformers 5

Folders and files are those of make_glm4_moe.py; of the cases with a draft layer, those of
make_glm4_moe_mtp.py, whose reference of the draft layer serves here too.

transformers builds q_a_layernorm and kv_a_layernorm without an epsilon, so that they take the default
of their class, 1e-6. The published model was trained and is served elsewhere with rms_norm_eps, 1e-5,
in all its norms. The two modules therefore get rms_norm_eps here after the model is built.
"""

import json
import pathlib

import torch
import transformers
from safetensors.torch import save_file
from transformers import Glm4MoeLiteConfig, Glm4MoeLiteForCausalLM
from transformers.models.glm4_moe_lite.modeling_glm4_moe_lite import Glm4MoeLiteDecoderLayer

import make_glm4_moe as plain
import make_glm4_moe_mtp as mtp

OUT = pathlib.Path(__file__).parent / "glm4_moe_lite"

CASES = {
    # As GLM-4.7-Flash: one dense layer, the copies of the draft layer equal to the model's.
    "flash": dict(
        style="hub", shards=1, dtype="float32", copies="equal",
        hidden_size=40, num_attention_heads=5, q_lora_rank=24, kv_lora_rank=32,
        qk_nope_head_dim=12, qk_rope_head_dim=4, v_head_dim=16,
        num_hidden_layers=3, dense=1, intermediate_size=80,
        n_routed_experts=8, num_experts_per_tok=2, moe_intermediate_size=12,
        routed_scaling_factor=1.8, norm_topk_prob=True, rope_theta=1000000, vocab_size=152),
    # Values wider than keys, odd sizes, two dense layers, tied embeddings, no draft layer; two files.
    "wide": dict(
        style="new", shards=2, dtype="float32", copies=None,
        hidden_size=36, num_attention_heads=3, q_lora_rank=20, kv_lora_rank=18,
        qk_nope_head_dim=9, qk_rope_head_dim=8, v_head_dim=22,
        num_hidden_layers=4, dense=2, intermediate_size=44,
        n_routed_experts=12, num_experts_per_tok=3, moe_intermediate_size=16,
        routed_scaling_factor=1.5, norm_topk_prob=False, rope_theta=10000, vocab_size=200,
        tie_word_embeddings=True),
    # BF16 weights.
    "bfloat16": dict(
        style="hub", shards=2, dtype="bfloat16", copies="own",
        hidden_size=64, num_attention_heads=4, q_lora_rank=32, kv_lora_rank=32,
        qk_nope_head_dim=24, qk_rope_head_dim=8, v_head_dim=32,
        num_hidden_layers=3, dense=1, intermediate_size=96,
        n_routed_experts=16, num_experts_per_tok=4, moe_intermediate_size=16,
        routed_scaling_factor=1.8, norm_topk_prob=True, rope_theta=1000000, vocab_size=224),
}


def make_config(case):
    keys = {k: v for k, v in case.items()
            if k not in ("style", "shards", "dtype", "copies", "dense", "rope_theta")}
    layers, dense = case["num_hidden_layers"], case["dense"]
    config = Glm4MoeLiteConfig(
        **keys, num_key_value_heads=case["num_attention_heads"],
        mlp_layer_types=["dense"] * dense + ["sparse"] * (layers - dense),
        max_position_embeddings=4096, rms_norm_eps=1e-5, eos_token_id=[1, 3, 5], pad_token_id=1,
        rope_parameters=dict(rope_type="default", rope_theta=float(case["rope_theta"])))
    config._attn_implementation = "eager"
    config._experts_implementation = "eager"
    return config


def set_latent_epsilon(module, epsilon):
    for name, norm in module.named_modules():
        if name.endswith(("q_a_layernorm", "kv_a_layernorm")):
            norm.variance_epsilon = epsilon


def shrink_latents(module, config):
    """Makes latents so small that an epsilon of 1e-6 in their norms would show."""
    for name, tensor in module.named_parameters():
        if name.endswith("q_a_proj.weight"):
            tensor.data.mul_(0.02)
        elif name.endswith("kv_a_proj_with_mqa.weight"):
            tensor.data[:config.kv_lora_rank].mul_(0.02)


def write_folder(folder, case, model):
    plain.write_folder(folder, case | dict(partial_rotary_factor=1.0), model)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["architectures"] = ["Glm4MoeLiteForCausalLM"]
    if case["style"] == "hub":  # the keys of the published file
        for key in ("mlp_layer_types", "rope_interleave", "head_dim", "qk_head_dim", "pretraining_tp",
                    "bos_token_id", "initializer_range", "output_router_logits", "num_local_experts"):
            config.pop(key, None)
        config |= dict(first_k_dense_replace=case["dense"], topk_method="noaux_tc")
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def round_to_bfloat16(module):
    for name, tensor in module.state_dict().items():
        if not name.endswith("e_score_correction_bias"):
            tensor.copy_(tensor.bfloat16().float())


def draw(case, seed):
    """Model, draft layer, prompt and expectations of a seed, or nothing if a decision is close."""
    model = Glm4MoeLiteForCausalLM(make_config(case)).eval()
    set_latent_epsilon(model, model.config.rms_norm_eps)
    plain.draw_weights(model, seed)
    shrink_latents(model, model.config)
    if case["dtype"] == "bfloat16":
        round_to_bfloat16(model)
    prompt = torch.randint(0, case["vocab_size"], (plain.PROMPT,),
                           generator=torch.Generator().manual_seed(seed))
    logits, greedy, margins = plain.run(model, prompt)
    if margins <= 1 or len(set(greedy.tolist())) < plain.DISTINCT:
        return None
    expected = {"prompt_ids": prompt.int(), "greedy_ids": greedy.int(), "logits": logits}
    if case["copies"] is None:
        return model, None, expected
    draft = mtp.Draft(model, Glm4MoeLiteDecoderLayer, case["copies"]).eval()
    set_latent_epsilon(draft, model.config.rms_norm_eps)
    draft.draw(seed)
    shrink_latents(draft, model.config)
    if case["dtype"] == "bfloat16":
        round_to_bfloat16(draft)
    of_draft, margin = mtp.expected_of_draft(model, draft, prompt, greedy)
    return (model, draft, expected | of_draft) if margin > plain.EXPERT_MARGIN else None


def make_case(name, case):
    seed, found = 0, None
    while found is None:
        seed += 1
        found = draw(case, seed)
    model, draft, expected = found
    dtype = getattr(torch, case["dtype"])
    folder = OUT / name
    write_folder(folder, case, model)

    # The names are those of the hub if the library finds every tensor under them.
    loaded, report = Glm4MoeLiteForCausalLM.from_pretrained(
        folder, dtype=dtype, attn_implementation="eager", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"], report
    loaded.config._experts_implementation = "eager"
    set_latent_epsilon(loaded, model.config.rms_norm_eps)
    with torch.no_grad():
        again = loaded.eval()(input_ids=expected["prompt_ids"][None].long(), use_cache=False)
    again = again.logits[0].float()
    difference = (again - expected["logits"]).abs().max().item()
    if dtype == torch.bfloat16:
        expected |= {"logits": again, "logits_f32": expected["logits"]}
    else:
        assert difference < 1e-5, difference
    if draft is not None:
        mtp.add_draft(folder, draft, dtype, separate=case["shards"] > 1)
    save_file({n: t.contiguous() for n, t in expected.items()}, OUT / f"{name}.expected.safetensors")
    size = sum(f.stat().st_size for f in folder.iterdir())
    print(f"{name}: seed {seed}, logits std {expected['logits'].std():.2f}, {size / 1000:.0f} kB, "
          f"reloaded in {case['dtype']}: max difference {difference:.1e}")


def main():
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    OUT.mkdir(parents=True, exist_ok=True)
    for name, case in CASES.items():
        make_case(name, case)


if __name__ == "__main__":
    main()
