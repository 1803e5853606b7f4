#!/usr/bin/env python3
"""Writes tiny random FP8 checkpoints to tests/golden/glm4_moe_fp8, and what they should compute.

    python3 tests/golden/make_fp8.py        needs numpy

The reference is float64 throughout, except that FP8 weights stand for value * scale and that rows
are quantised at the points that kernels/ops.h states: the normalised rows before an FP8 linear, the
attention's output before o_proj, the product before down_proj (by token, or by 128 columns with
block scales), and the experts' product (by 128 columns always). Beside each checkpoint folder lies
NAME.expected.safetensors:

    prompt_ids     I32 [40]
    logits         F32 [40, V]
    logits_plain   F32 [40, V]   the same with no row quantised: how far off it would be to forget it

A seed is taken only if the chosen experts are apart from the next best, so that a value that rounds
the other way cannot change them.
"""

import json
import pathlib
import shutil
import struct

import numpy as np

OUT = pathlib.Path(__file__).parent / "glm4_moe_fp8"
PROMPT = 40
EXPERT_MARGIN = 4e-3

CHANNEL = {
    "quant_method": "compressed-tensors", "format": "float-quantized",
    "config_groups": {"group_0": {
        "targets": ["Linear"],
        "weights": {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True, "dynamic": False},
        "input_activations": {"num_bits": 8, "type": "float", "strategy": "token", "symmetric": True,
                              "dynamic": True}}},
    "ignore": ["lm_head", "model.embed_tokens", "re:.*layers.2.*"], "kv_cache_scheme": None}
BLOCK = {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3", "weight_block_size": [128, 128]}

# Layer 2 of "channel" is not quantised; M = 160 has a group of 128 and one of 32; H = 192 of "block"
# ends inside a block.
CASES = {
    "channel": dict(
        quantization=CHANNEL, hidden_size=64, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
        num_hidden_layers=3, first_k_dense_replace=1, intermediate_size=96, n_routed_experts=4,
        num_experts_per_tok=2, moe_intermediate_size=160, use_qk_norm=True, attention_bias=True,
        routed_scaling_factor=2.5, vocab_size=128),
    "block": dict(
        quantization=BLOCK, hidden_size=192, num_attention_heads=4, num_key_value_heads=4, head_dim=32,
        num_hidden_layers=2, first_k_dense_replace=1, intermediate_size=256, n_routed_experts=4,
        num_experts_per_tok=2, moe_intermediate_size=128, use_qk_norm=False, attention_bias=True,
        routed_scaling_factor=1.0, vocab_size=128),
}


def e4m3_table():
    table = []
    for code in range(127):
        exponent, mantissa = code >> 3, code & 7
        table.append(mantissa * 2.0**-9 if exponent == 0 else (1 + mantissa / 8) * 2.0**(exponent - 7))
    return np.array(table)


TABLE = e4m3_table()


def e4m3_codes(x):
    """Codes 0..255, to nearest, ties to even, saturated."""
    a = np.minimum(np.abs(x), 448.0)
    high = np.clip(np.searchsorted(TABLE, a), 1, 126)
    low = high - 1
    below, above = a - TABLE[low], TABLE[high] - a
    code = np.where((below < above) | ((below == above) & (low % 2 == 0)), low, high)
    return (code | np.where(np.signbit(x), 0x80, 0)).astype(np.uint8)


def e4m3_values(codes):
    return np.where(codes & 0x80, -1.0, 1.0) * TABLE[codes & 0x7F]


def f32(x):
    return np.asarray(x, np.float32).astype(np.float64)


def bf16_bits(x):
    bits = np.asarray(x, np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def bf16(x):
    return (bf16_bits(x).astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def scale_of(x, axis):
    largest = np.abs(x).max(axis=axis, keepdims=True)
    return f32(np.where(largest == 0, 1.0, largest / 448.0))


def quantize_rows(x, group):
    """What is left of rows after FP8, with a scale for every `group` columns; 0: one a row."""
    width = x.shape[-1]
    out = np.empty_like(x)
    for begin in range(0, width, group or width):
        part = x[..., begin:begin + (group or width)]
        scale = scale_of(part, -1)
        out[..., begin:begin + part.shape[-1]] = e4m3_values(e4m3_codes(part / scale)) * scale
    return out


class Checkpoint:
    def __init__(self, case, seed):
        self.case, self.rng = case, np.random.default_rng(seed)
        self.block = case["quantization"] is BLOCK
        self.stored = {}   # name -> (dtype, shape, bytes)
        self.values = {}   # name -> what it stands for, float64
        self.float8 = set()

    def put(self, name, dtype, x):
        payload = {"F32": lambda: np.asarray(x, "<f4").tobytes(), "BF16": lambda: bf16_bits(x).tobytes(),
                   "F8_E4M3": lambda: np.asarray(x, np.uint8).tobytes(),
                   "I32": lambda: np.asarray(x, "<i4").tobytes()}[dtype]()
        self.stored[name] = (dtype, list(np.shape(x)), payload)

    def plain(self, name, shape, deviation, mean=0.0, dtype="BF16"):
        x = mean + deviation * self.rng.standard_normal(shape)
        self.values[name] = bf16(x) if dtype == "BF16" else f32(x)
        self.put(name, dtype, x)

    def linear(self, name, rows, columns, quantized, gain=1.0, flat_bf16_scale=False):
        if not quantized:
            return self.plain(name + ".weight", (rows, columns), gain / columns**0.5)
        w = gain / columns**0.5 * self.rng.standard_normal((rows, columns))
        if self.block:
            scales = np.empty((-(-rows // 128), -(-columns // 128)))
            codes, values = np.empty(w.shape, np.uint8), np.empty(w.shape)
            for i in range(scales.shape[0]):
                for j in range(scales.shape[1]):
                    at = np.s_[128 * i:128 * i + 128, 128 * j:128 * j + 128]
                    scales[i, j] = scale_of(w[at], None).item()
                    codes[at] = e4m3_codes(w[at] / scales[i, j])
                    values[at] = e4m3_values(codes[at]) * scales[i, j]
            self.put(name + ".weight_scale_inv", "F32", scales)
        else:
            scales = scale_of(w, 1)
            if flat_bf16_scale:
                scales = bf16(scales)
                self.put(name + ".weight_scale", "BF16", scales[:, 0])
            else:
                self.put(name + ".weight_scale", "F32", scales)
            codes = e4m3_codes(w / scales)
            values = e4m3_values(codes) * scales
        self.put(name + ".weight", "F8_E4M3", codes)
        self.values[name + ".weight"] = values
        self.float8.add(name)

    def mlp(self, name, width, quantized):
        hidden = self.case["hidden_size"]
        self.linear(name + "gate_proj", width, hidden, quantized, 1.4)
        self.linear(name + "up_proj", width, hidden, quantized, 1.4)
        self.linear(name + "down_proj", hidden, width, quantized)

    def draw(self):
        c = self.case
        hidden, head = c["hidden_size"], c["head_dim"]
        self.plain("model.embed_tokens.weight", (c["vocab_size"], hidden), 1.0)
        for n in range(c["num_hidden_layers"]):
            quantized = n != 2
            name = f"model.layers.{n}."
            for norm in ("input_layernorm", "post_attention_layernorm"):
                self.plain(name + norm + ".weight", (hidden,), 0.2, 1.0)
            attention = name + "self_attn."
            for part, heads in (("q", "num_attention_heads"), ("k", "num_key_value_heads"), ("v", "num_key_value_heads")):
                rows = c[heads] * head
                self.linear(attention + part + "_proj", rows, hidden, quantized,
                            flat_bf16_scale=not self.block and part == "k")
                self.plain(attention + part + "_proj.bias", (rows,), 0.3)
            if c["use_qk_norm"]:
                for part in ("q", "k"):
                    self.plain(attention + part + "_norm.weight", (head,), 0.2, 1.0)
            self.linear(attention + "o_proj", hidden, c["num_attention_heads"] * head, quantized)
            if n < c["first_k_dense_replace"]:
                self.mlp(name + "mlp.", c["intermediate_size"], quantized)
                continue
            self.plain(name + "mlp.gate.weight", (c["n_routed_experts"], hidden), 1 / hidden**0.5)
            self.plain(name + "mlp.gate.e_score_correction_bias", (c["n_routed_experts"],), 0.15, dtype="F32")
            for j in range(c["n_routed_experts"]):
                self.mlp(name + f"mlp.experts.{j}.", c["moe_intermediate_size"], quantized)
            self.mlp(name + "mlp.shared_experts.", c["moe_intermediate_size"], quantized)
        self.plain("model.norm.weight", (hidden,), 0.2, 1.0)
        self.plain("lm_head.weight", (c["vocab_size"], hidden), 1 / hidden**0.5)


class Model:
    def __init__(self, checkpoint, quantize):
        self.k, self.c = checkpoint, checkpoint.case
        self.group = 128 if checkpoint.block else 0
        self.quantize = quantize
        self.margin = np.inf

    def w(self, name):
        return self.k.values[name + ".weight"]

    def rms(self, x, name):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * self.w(name)

    def apply(self, name, x, group=None):
        if name in self.k.float8 and self.quantize:
            x = quantize_rows(x, self.group if group is None else group)
        y = x @ self.w(name).T
        bias = self.k.values.get(name + ".bias")
        return y if bias is None else y + bias

    def rope(self, x):
        size = self.c["head_dim"] // 2
        frequency = 1e6 ** (-2.0 * np.arange(size // 2) / size)
        angle = np.arange(len(x))[:, None, None] * frequency
        low, high = x[..., :size // 2], x[..., size // 2:size]
        cos, sin = np.cos(angle), np.sin(angle)
        return np.concatenate([low * cos - high * sin, high * cos + low * sin, x[..., size:]], -1)

    def attention(self, x, name):
        c, tokens, head = self.c, len(x), self.c["head_dim"]
        q = self.apply(name + "q_proj", x).reshape(tokens, -1, head)
        k = self.apply(name + "k_proj", x).reshape(tokens, -1, head)
        v = self.apply(name + "v_proj", x).reshape(tokens, -1, head)
        if c["use_qk_norm"]:
            q, k = self.rms(q, name + "q_norm"), self.rms(k, name + "k_norm")
        q, k = self.rope(q), self.rope(k)
        group = c["num_attention_heads"] // c["num_key_value_heads"]
        k, v = np.repeat(k, group, 1), np.repeat(v, group, 1)
        scores = np.einsum("tnd,snd->nts", q, k) / head**0.5
        scores = np.where(np.tril(np.ones((tokens, tokens), bool)), scores, -np.inf)
        p = np.exp(scores - scores.max(-1, keepdims=True))
        p /= p.sum(-1, keepdims=True)
        return self.apply(name + "o_proj", np.einsum("nts,snd->tnd", p, v).reshape(tokens, -1))

    def mlp(self, x, name, group=None):
        gate, up = self.apply(name + "gate_proj", x), self.apply(name + "up_proj", x)
        return self.apply(name + "down_proj", gate / (1 + np.exp(-gate)) * up, group)

    def mixture(self, x, name):
        c = self.c
        s = 1 / (1 + np.exp(-(x @ self.w(name + "gate").T)))
        choice = s + self.k.values[name + "gate.e_score_correction_bias"]
        top = c["num_experts_per_tok"]
        order = np.argsort(-choice, 1)
        ranked = np.take_along_axis(choice, order, 1)
        self.margin = min(self.margin, (ranked[:, top - 1] - ranked[:, top]).min())
        out = self.mlp(x, name + "shared_experts.", 128)
        for t in range(len(x)):
            chosen = order[t, :top]
            weights = s[t, chosen] / s[t, chosen].sum() * c["routed_scaling_factor"]
            for e, weight in zip(chosen, weights):
                out[t] += weight * self.mlp(x[t:t + 1], name + f"experts.{e}.", 128)[0]
        return out

    def logits(self, ids):
        x = self.w("model.embed_tokens")[ids]
        for n in range(self.c["num_hidden_layers"]):
            name = f"model.layers.{n}."
            x = x + self.attention(self.rms(x, name + "input_layernorm"), name + "self_attn.")
            y = self.rms(x, name + "post_attention_layernorm")
            dense = n < self.c["first_k_dense_replace"]
            x = x + (self.mlp(y, name + "mlp.") if dense else self.mixture(y, name + "mlp."))
        return self.rms(x, "model.norm") @ self.w("lm_head").T


def save(path, tensors):
    header, begin = {}, 0
    for name, (dtype, shape, payload) in sorted(tensors.items()):
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, begin + len(payload)]}
        begin += len(payload)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(t[2] for _, t in sorted(tensors.items())))


def make(name, case):
    for seed in range(1, 1000):
        checkpoint = Checkpoint(case, seed)
        checkpoint.draw()
        ids = np.random.default_rng(seed + 5000).integers(0, case["vocab_size"], PROMPT)
        model = Model(checkpoint, quantize=True)
        logits = model.logits(ids)
        plain = Model(checkpoint, quantize=False)
        logits_plain = plain.logits(ids)
        if min(model.margin, plain.margin) > EXPERT_MARGIN:
            break
    print(f"{name}: seed {seed}, margin {model.margin:.4f}, deviation of logits {logits.std():.3f}, "
          f"rms of the quantised rows' effect {np.sqrt(((logits - logits_plain)**2).mean()):.4f}")
    folder = OUT / name
    folder.mkdir(parents=True)
    config = {k: v for k, v in case.items() if k != "quantization"} | dict(
        architectures=["Glm4MoeForCausalLM"], model_type="glm4_moe", hidden_act="silu", n_group=1, topk_group=1,
        n_shared_experts=1, norm_topk_prob=True, num_nextn_predict_layers=0, partial_rotary_factor=0.5,
        max_position_embeddings=512, rms_norm_eps=1e-5, rope_theta=1000000, rope_scaling=None,
        tie_word_embeddings=False, torch_dtype="bfloat16", eos_token_id=[1, 3],
        quantization_config=case["quantization"])
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    save(folder / "model.safetensors", checkpoint.stored)
    expected = Checkpoint(case, 0)
    expected.put("prompt_ids", "I32", ids)
    expected.put("logits", "F32", logits)
    expected.put("logits_plain", "F32", logits_plain)
    save(OUT / f"{name}.expected.safetensors", expected.stored)


if __name__ == "__main__":
    shutil.rmtree(OUT, ignore_errors=True)
    for case_name, case_keys in CASES.items():
        make(case_name, case_keys)
