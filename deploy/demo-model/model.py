"""The GLM-4.X mixture-of-experts model in plain PyTorch, for training: Glm4MoeForCausalLM and its multi-token-prediction (MTP) layer.

The shapes come from SHAPE, which is also config.json. All experts are computed for every token and weighted by the routing (zero for
those not chosen): at this size that is faster than sorting tokens. The shared expert rides along as one more expert of weight 1.

Letters: B rows, T tokens, H hidden, N query heads, K kv heads, D head size, E experts, M expert width, V vocabulary.
"""
import json
import os

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

VOCAB_BASE = 4096  # then 36 added tokens, then padding rows
SHAPE = {
    "architectures": ["Glm4MoeForCausalLM"],
    "attention_bias": True,
    "attention_dropout": 0.0,
    "dtype": "bfloat16",
    "eos_token_id": [VOCAB_BASE, VOCAB_BASE + 7, VOCAB_BASE + 9],
    "first_k_dense_replace": 1,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 256,
    "initializer_range": 0.02,
    "intermediate_size": 640,
    "max_position_embeddings": 4096,
    "model_type": "glm4_moe",
    "moe_intermediate_size": 128,
    "n_group": 1,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": 8,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 5,
    "num_key_value_heads": 4,
    "num_nextn_predict_layers": 1,
    "pad_token_id": VOCAB_BASE,
    "partial_rotary_factor": 0.5,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "routed_scaling_factor": 2.5,
    "tie_word_embeddings": False,
    "topk_group": 1,
    "use_cache": True,
    "use_qk_norm": True,
    "vocab_size": 4224,
}
H, D, N, K = SHAPE["hidden_size"], SHAPE["head_dim"], SHAPE["num_attention_heads"], SHAPE["num_key_value_heads"]
E, M, L, V = SHAPE["n_routed_experts"], SHAPE["moe_intermediate_size"], SHAPE["num_hidden_layers"], SHAPE["vocab_size"]
ROTARY = int(D * SHAPE["partial_rotary_factor"])


def rms_norm(x, weight):
    x32 = x.float()
    return weight.to(x.dtype) * (x32 * torch.rsqrt(x32.pow(2).mean(-1, keepdim=True) + SHAPE["rms_norm_eps"])).to(x.dtype)


def linear(x, weight, bias=None):
    """Master weights are F32; the product is in the type of the activations."""
    return F.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))


def rotary_table(length, device):
    frequency = SHAPE["rope_theta"] ** (-torch.arange(0, ROTARY, 2, device=device).float() / ROTARY)
    angle = torch.arange(length, device=device).float()[:, None] * frequency
    return angle.cos(), angle.sin()  # [T, ROTARY / 2] each


def rotate(x, cos, sin):
    """NEOX form on the first ROTARY of D: dimension i pairs with i + ROTARY / 2. x [B, heads, T, D]."""
    a, b, rest = x.float().split([ROTARY // 2, ROTARY // 2, D - ROTARY], dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], dim=-1).to(x.dtype)


def matrix(*shape, std=0.02):
    return nn.Parameter(torch.randn(*shape) * std)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = matrix(N * D, H), matrix(K * D, H), matrix(K * D, H)
        self.q_bias, self.k_bias, self.v_bias = (nn.Parameter(torch.zeros(n * D)) for n in (N, K, K))
        self.q_norm, self.k_norm = nn.Parameter(torch.ones(D)), nn.Parameter(torch.ones(D))
        self.o = matrix(H, N * D, std=0.02 / (2 * L) ** 0.5)

    def forward(self, x, cos, sin):
        rows, length, _ = x.shape

        def heads(weight, bias, n):
            return linear(x, weight, bias).view(rows, length, n, D).transpose(1, 2)
        q = rotate(rms_norm(heads(self.q, self.q_bias, N), self.q_norm), cos, sin)
        k = rotate(rms_norm(heads(self.k, self.k_bias, K), self.k_norm), cos, sin)
        out = F.scaled_dot_product_attention(q, k, heads(self.v, self.v_bias, K), is_causal=True, enable_gqa=True)
        return linear(out.transpose(1, 2).reshape(rows, length, N * D), self.o)

    def tensors(self):
        return {"q_proj.weight": self.q, "k_proj.weight": self.k, "v_proj.weight": self.v, "o_proj.weight": self.o, "q_proj.bias": self.q_bias,
                "k_proj.bias": self.k_bias, "v_proj.bias": self.v_bias, "q_norm.weight": self.q_norm, "k_norm.weight": self.k_norm}


class Dense(nn.Module):
    def __init__(self):
        super().__init__()
        width = SHAPE["intermediate_size"]
        self.gate, self.up, self.down = matrix(width, H), matrix(width, H), matrix(H, width, std=0.02 / (2 * L) ** 0.5)

    def forward(self, x):
        return linear(F.silu(linear(x, self.gate)) * linear(x, self.up), self.down), None

    def tensors(self):
        return {"gate_proj.weight": self.gate, "up_proj.weight": self.up, "down_proj.weight": self.down}


class Experts(nn.Module):
    """E routed experts and, at index E, the shared one."""

    def __init__(self):
        super().__init__()
        self.router = matrix(E, H)
        self.register_buffer("router_bias", torch.zeros(E))  # moved by balance(), not by the gradient
        self.gate, self.up, self.down = matrix(E + 1, M, H), matrix(E + 1, M, H), matrix(H, E + 1, M, std=0.02 / (2 * L) ** 0.5)

    def forward(self, x):
        """Returns the output [B, T, H] and the share of the tokens that each expert got [E]."""
        score = torch.sigmoid(F.linear(x.float(), self.router))
        chosen = (score.detach() + self.router_bias).topk(SHAPE["num_experts_per_tok"], dim=-1).indices
        mask = F.one_hot(chosen, E).sum(-2).to(score.dtype)
        weight = score * mask
        weight = weight / (weight.sum(-1, keepdim=True) + 1e-20) * SHAPE["routed_scaling_factor"]
        weight = torch.cat([weight, torch.ones_like(weight[..., :1])], dim=-1)
        hidden = F.silu(linear(x, self.gate.flatten(0, 1))) * linear(x, self.up.flatten(0, 1))
        hidden = (hidden.unflatten(-1, (E + 1, M)) * weight.to(x.dtype).unsqueeze(-1)).flatten(-2)
        return linear(hidden, self.down.flatten(1)), mask.flatten(0, -2).mean(0)

    def tensors(self):
        names = {"gate.weight": self.router, "gate.e_score_correction_bias": self.router_bias}
        for i in range(E + 1):
            name = f"experts.{i}" if i < E else "shared_experts"
            names |= {f"{name}.gate_proj.weight": self.gate[i], f"{name}.up_proj.weight": self.up[i], f"{name}.down_proj.weight": self.down[:, i]}
        return names


class Layer(nn.Module):
    def __init__(self, dense):
        super().__init__()
        self.norm_in, self.norm_post = nn.Parameter(torch.ones(H)), nn.Parameter(torch.ones(H))
        self.attention, self.ffn = Attention(), Dense() if dense else Experts()

    def forward(self, x, cos, sin):
        x = x + self.attention(rms_norm(x, self.norm_in), cos, sin)
        out, load = self.ffn(rms_norm(x, self.norm_post))
        return x + out, load

    def tensors(self):
        names = {"input_layernorm.weight": self.norm_in, "post_attention_layernorm.weight": self.norm_post}
        names |= {"self_attn." + name: tensor for name, tensor in self.attention.tensors().items()}
        return names | {"mlp." + name: tensor for name, tensor in self.ffn.tensors().items()}


class Glm(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head, self.norm = matrix(V, H), matrix(V, H), nn.Parameter(torch.ones(H))
        self.layers = nn.ModuleList(Layer(dense=i < SHAPE["first_k_dense_replace"]) for i in range(L))
        self.enorm, self.hnorm, self.mtp_norm = (nn.Parameter(torch.ones(H)) for _ in range(3))
        self.eh, self.mtp_layer = matrix(H, 2 * H), Layer(dense=False)

    def forward(self, ids, dtype):
        """ids [B, T]. Returns two hidden states [B, T, H] ready for the head, and the expert loads per MoE layer.

        The first at position p predicts token p + 1. The second, of the MTP layer, has seen token p + 1 and predicts token p + 2; its
        last position, which has no next token, is void.
        """
        cos, sin = rotary_table(ids.shape[1], ids.device)
        embedded = F.embedding(ids, self.embed).to(dtype)
        x, loads = embedded, []
        for layer in self.layers:
            x, load = layer(x, cos, sin)
            loads.append(load)
        main = rms_norm(x, self.norm)
        ahead = torch.cat([embedded[:, 1:], embedded[:, :1]], dim=1)
        x = linear(torch.cat([rms_norm(ahead, self.enorm), rms_norm(main, self.hnorm)], dim=-1), self.eh)
        x, load = self.mtp_layer(x, cos, sin)
        return main, rms_norm(x, self.mtp_norm), [load for load in loads + [load] if load is not None]

    def experts(self):
        return [layer.ffn for layer in [*self.layers, self.mtp_layer] if isinstance(layer.ffn, Experts)]

    @torch.no_grad()
    def balance(self, loads, rate):
        """Raises the selection bias of experts with too little load and lowers that of the others."""
        for experts, load in zip(self.experts(), loads):
            experts.router_bias += rate * torch.sign(load.mean() - load)

    def tensors(self):
        """The parameters under the names of the checkpoint. The MTP layer shares embed_tokens and lm_head, so has none of its own."""
        names = {"model.embed_tokens.weight": self.embed, "model.norm.weight": self.norm, "lm_head.weight": self.head}
        for i, layer in enumerate([*self.layers, self.mtp_layer]):
            names |= {f"model.layers.{i}.{name}": tensor for name, tensor in layer.tensors().items()}
        return names | {f"model.layers.{L}.{name}.weight": tensor for name, tensor in
                        [("enorm", self.enorm), ("hnorm", self.hnorm), ("eh_proj", self.eh), ("shared_head.norm", self.mtp_norm)]}

    @torch.no_grad()
    def round_weights(self):
        """Rounds to what the checkpoint stores, so that what is evaluated is what is shipped."""
        for name, tensor in self.tensors().items():
            if not name.endswith("correction_bias"):
                tensor.copy_(tensor.bfloat16())

    @torch.no_grad()
    def load(self, folder, change=lambda name, tensor: tensor):
        stored = load_file(os.path.join(folder, "model.safetensors"))
        for name, tensor in self.tensors().items():
            tensor.copy_(change(name, stored.pop(name)))
        assert not stored, f"unknown tensors: {list(stored)}"
        return self

    def save(self, folder):
        stored = {name: tensor.detach().to("cpu", torch.float32 if name.endswith("correction_bias") else torch.bfloat16).contiguous().clone()
                  for name, tensor in self.tensors().items()}
        os.makedirs(folder, exist_ok=True)
        path = os.path.join(folder, "model.safetensors")
        save_file(stored, path, metadata={"format": "pt"})
        os.chmod(path, 0o644)
        size = sum(tensor.numel() * tensor.element_size() for tensor in stored.values())
        index = {"metadata": {"total_size": size}, "weight_map": {name: "model.safetensors" for name in sorted(stored)}}
        generation = {"do_sample": True, "eos_token_id": SHAPE["eos_token_id"], "pad_token_id": SHAPE["pad_token_id"], "temperature": 0.5, "top_p": 0.95}
        for name, value in [("config.json", SHAPE), ("generation_config.json", generation), ("model.safetensors.index.json", index)]:
            with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
                json.dump(value, file, indent=2)
                file.write("\n")
