#!/usr/bin/env python3
"""Writes 4-layer models of the real widths of GLM-4.5-Air and GLM-4.7-Flash with random weights, and
what transformers says of them: too large to keep, made where a GPU is.

With random weights some of a router's choices are close, and rounding to BF16 decides them: then
transformers in BF16 is itself at 0.995 (Flash width) of transformers in F32, and nothing can be
compared. So the tokens are drawn one after the other, each the one of CANDIDATES whose choices of
experts in all layers stand furthest apart from the next best; the script prints the least distance,
and how many choices BF16 still changes.

    python3 tests/golden/make_width.py OUT        needs torch with CUDA and transformers 5

OUT/NAME is the checkpoint, OUT/NAME.expected.safetensors has `ids`, `logits` (BF16 weights and
activations) and `logits_f32` (the same weights, activations in F32). build/.../bin/width_compare holds
the engine to them.
"""

import pathlib
import sys

import torch
import transformers
from safetensors.torch import save_file
from transformers import Glm4MoeForCausalLM, Glm4MoeLiteForCausalLM

import make_glm4_moe as plain
import make_glm4_moe_lite as lite

TOKENS = 144
CANDIDATES = 16

AIR = dict(
    style="hub", shards=4, dtype="bfloat16",
    hidden_size=4096, num_attention_heads=96, num_key_value_heads=8, head_dim=128,
    num_hidden_layers=4, first_k_dense_replace=1, intermediate_size=10944,
    n_routed_experts=128, num_experts_per_tok=8, moe_intermediate_size=1408,
    use_qk_norm=False, attention_bias=True, routed_scaling_factor=1.0, norm_topk_prob=True,
    rope_theta=1000000, partial_rotary_factor=0.5, vocab_size=151552)

FLASH = dict(
    style="hub", shards=2, dtype="bfloat16",
    hidden_size=2048, num_attention_heads=20, q_lora_rank=768, kv_lora_rank=512,
    qk_nope_head_dim=192, qk_rope_head_dim=64, v_head_dim=256,
    num_hidden_layers=4, dense=1, intermediate_size=10240,
    n_routed_experts=64, num_experts_per_tok=4, moe_intermediate_size=1536,
    routed_scaling_factor=1.8, norm_topk_prob=True, rope_theta=1000000, vocab_size=154880)


@torch.no_grad()
def draw_weights(model, seed):
    """As make_glm4_moe's, drawn on the GPU."""
    generator = torch.Generator(device="cuda").manual_seed(seed)
    for name, tensor in model.state_dict(keep_vars=True).items():
        std, mean = tensor.shape[-1] ** -0.5, 0.0
        if name.endswith("norm.weight") or "layernorm" in name:
            std, mean = 0.2, 1.0
        elif name.endswith("e_score_correction_bias"):
            std = 0.05
        elif name.endswith("bias"):
            std = 0.5
        elif name.endswith("embed_tokens.weight"):
            std = 1.0
        tensor.data.normal_(mean, std, generator=generator)


def run(model, ids, last_only=False):
    """Logits of ids [batch, tokens]; of each position the experts chosen in each layer, [layers, batch,
    tokens, E], and how far the last of them is from the next best, the least of all layers."""
    routers = [layer.mlp.gate for layer in model.model.layers if hasattr(layer.mlp, "gate")]
    seen = {}
    hooks = [router.register_forward_pre_hook(lambda module, args: seen.__setitem__(module, args[0]))
             for router in routers]
    logits = model(input_ids=ids, use_cache=False, logits_to_keep=1 if last_only else 0).logits
    for hook in hooks:
        hook.remove()
    chosen, margin = [], None
    for router in routers:
        hidden = seen[router].reshape(ids.shape[0], ids.shape[1], -1).float()
        ranks = (hidden @ router.weight.float().T).sigmoid() + router.e_score_correction_bias.float()
        best = ranks.topk(model.config.num_experts_per_tok + 1, dim=-1)
        own = best.values[..., -2] - best.values[..., -1]
        margin = own if margin is None else torch.minimum(margin, own)
        taken = torch.zeros_like(ranks, dtype=torch.bool)
        chosen.append(taken.scatter_(-1, best.indices[..., :-1], True))
    return logits, torch.stack(chosen), margin


def draw_ids(model, vocabulary):
    """Tokens whose choices of experts are not close; a position's depend on those before it alone."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.empty(0, dtype=torch.long, device="cuda")
    least = float("inf")
    for _ in range(TOKENS):
        drawn = torch.randint(0, vocabulary, (CANDIDATES, 1), generator=generator).cuda()
        batch = torch.cat([ids[None].expand(CANDIDATES, -1), drawn], dim=1)
        margin = run(model, batch, last_only=True)[2][:, -1]
        least = min(least, margin.max().item())
        ids = batch[margin.argmax()]
    return ids, least


@torch.no_grad()
def make(out, name, case, cls, module):
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = cls(module.make_config(case)).eval()
    torch.set_default_dtype(torch.float32)
    if module is lite:
        lite.set_latent_epsilon(model, model.config.rms_norm_eps)
    for tensor_name, tensor in model.named_buffers():
        if tensor_name.endswith("e_score_correction_bias"):
            tensor.data = tensor.data.float()
    draw_weights(model, 1)
    model.model.rotary_emb.to("cuda")
    module.write_folder(out / name, case, model)
    wide_buffers = {key: tensor.data.clone() for key, tensor in model.named_buffers()}
    model.float()
    ids, least = draw_ids(model, case["vocab_size"])
    batch = ids[None]
    wide, wide_choices, _ = run(model, batch)
    logits_f32 = wide[0].float().cpu()
    model.bfloat16()  # the weights are BF16's: nothing is lost; buffers are as they were
    for key, tensor in model.named_buffers():
        tensor.data = wide_buffers[key]
    narrow, narrow_choices, _ = run(model, batch)
    logits = narrow[0].float().cpu()
    changed = (narrow_choices != wide_choices).any(-1).sum().item()
    save_file({"ids": ids.int().cpu(), "logits": logits.contiguous(),
               "logits_f32": logits_f32.contiguous()}, out / f"{name}.expected.safetensors")
    cosine = torch.nn.functional.cosine_similarity(logits, logits_f32, dim=-1)
    print(f"{name}: logits std {logits.std():.2f}, choices of experts apart by {least:.5f}, BF16 "
          f"changes {changed} of {wide_choices[..., 0].numel()}; transformers in BF16 against F32: "
          f"cosine {cosine.min():.6f} at least, {cosine.mean():.6f} in the mean", flush=True)


def main():
    out = pathlib.Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    transformers.utils.logging.disable_progress_bar()
    for name, case, cls, module in (("flash", FLASH, Glm4MoeLiteForCausalLM, lite),
                                    ("air", AIR, Glm4MoeForCausalLM, plain)):
        make(out, name, case, cls, module)
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
