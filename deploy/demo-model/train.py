"""Trains the demo model within a time limit and writes the checkpoint.

    python3 train.py --train train.txt --valid valid.txt --minutes 7 --out .

Documents are packed into rows of 512 or 4,096 tokens (long conversations, and a part of the short ones, go into the long rows).
Only what the assistant says counts fully in the loss; prompts count a tenth. The MTP layer is trained along, with weight 0.3.
"""
import argparse
import itertools
import json
import math
import os
import random
import time

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

from model import H, SHAPE, V, VOCAB_BASE, Glm, linear

HERE = os.path.dirname(os.path.abspath(__file__))
PAD, MASK_START, SYSTEM, USER, ASSISTANT, OBSERVATION = (VOCAB_BASE + i for i in (0, 2, 6, 7, 8, 9))
PROMPT_WEIGHT, MTP_WEIGHT = 0.1, 0.3
SHORT, LONG = 512, SHAPE["max_position_embeddings"]
LONG_SHARE = 0.1  # of the short documents, to be met at high positions too


def target_weights(flat, starts):
    """The weight of each token as a target; `flat` holds whole documents, which begin at `starts`."""
    state = np.full(len(flat), np.nan, np.float32)  # the weight of what follows a token; NaN: as before
    for token in (SYSTEM, USER, OBSERVATION):
        state[flat == token] = PROMPT_WEIGHT
    state[flat == ASSISTANT] = 1.0
    state[starts] = np.where(flat[starts] == MASK_START, PROMPT_WEIGHT, 1.0)
    last = np.maximum.accumulate(np.where(np.isnan(state), 0, np.arange(len(flat))))
    weights = np.roll(state[last], 1)
    weights[starts] = 0.0
    weights[np.roll(flat == ASSISTANT, 1)] = 0.0  # the prompt gives <think> or </think>
    return weights


def pack(documents, length):
    """Puts whole documents into rows, in their order; returns ids [R, length] and target weights [R, length]."""
    sizes = [len(document) for document in documents]
    flat = np.fromiter(itertools.chain.from_iterable(documents), np.int16, sum(sizes))
    starts = np.cumsum([0] + sizes)
    cuts = [0]
    for begin, end in itertools.pairwise(starts.tolist()):
        if end - cuts[-1] > length:
            cuts.append(begin)
    cuts.append(len(flat))
    ids, weights = np.full((len(cuts) - 1, length), PAD, np.int16), np.zeros((len(cuts) - 1, length), np.float16)
    flat_weights = target_weights(flat, starts[:-1])
    for row, (begin, end) in enumerate(itertools.pairwise(cuts)):
        ids[row, :end - begin], weights[row, :end - begin] = flat[begin:end], flat_weights[begin:end]
    return torch.from_numpy(ids), torch.from_numpy(weights)


def read_rows(path, seed):
    """{row length: (ids, weights)} of a text file."""
    tokenizer = Tokenizer.from_file(os.path.join(HERE, "tokenizer.json"))
    with open(path, encoding="utf-8") as file:
        texts = [json.loads(line) for line in file]
    random.Random(seed).shuffle(texts)
    documents = [encoding.ids for encoding in tokenizer.encode_batch_fast(texts)]
    pools = {SHORT: [], LONG: []}
    choice = random.Random(seed)
    for ids in documents:
        if len(ids) <= LONG:
            pools[LONG if len(ids) > SHORT or choice.random() < LONG_SHARE else SHORT].append(ids)
    return {length: pack(pool, length) for length, pool in pools.items()}


def batches(rows, tokens, device, generator):
    """Endless batches of about `tokens` tokens, each of one row length, in random order."""
    rows = {length: (ids.to(device), weights.to(device)) for length, (ids, weights) in rows.items()}
    while True:
        epoch = []
        for length, (ids, _) in rows.items():
            count = max(1, tokens // length)
            order = torch.randperm(len(ids), generator=generator)
            epoch += [(length, order[i:i + count]) for i in range(0, max(1, len(ids) - count + 1), count)]
        for i in torch.randperm(len(epoch), generator=generator).tolist():
            length, order = epoch[i]
            ids, weights = (tensor[order.to(device)] for tensor in rows[length])
            yield ids.long(), weights.float()


def shifted(ids, weights, by):
    """Targets `by` tokens ahead; the last positions of a row, which have none, get weight 0."""
    weights = torch.roll(weights, -by, 1)
    weights[:, -by:] = 0
    return torch.roll(ids, -by, 1), weights


def head_loss(hidden, head, target, weight):
    """Weighted mean cross entropy of the head's logits."""
    logits = linear(hidden.view(-1, H), head).float()
    loss = F.cross_entropy(logits, target.view(-1), reduction="none")
    return (loss * weight.view(-1)).sum() / weight.sum().clamp_min(1)


@torch.no_grad()
def evaluate(model, rows, dtype, device):
    """Perplexity, top-1 accuracy and mean top probability on the assistant's tokens, and the share of drafts that the model agrees with."""
    total = torch.zeros(6, device=device)
    for length, (ids, weights) in rows.items():
        for i in range(0, len(ids), 32 * SHORT // length):
            batch, weight = ids[i:i + 32 * SHORT // length].to(device).long(), weights[i:i + 32 * SHORT // length].to(device).float()
            main, ahead, _ = model(batch, dtype)
            target, weight = shifted(batch, (weight == 1).float(), 1)
            logits = linear(main, model.head).float()
            draft = linear(ahead, model.head)[..., :VOCAB_BASE + 36].argmax(-1)
            top, best = logits.softmax(-1).max(-1)
            loss = F.cross_entropy(logits.view(-1, V), target.view(-1), reduction="none").view_as(weight)
            follow = torch.roll(weight, -1, 1)  # the draft made at p is compared with the model's choice at p + 1
            follow[:, -1] = 0
            agreed = (draft == torch.roll(best, -1, 1)) * follow
            total += torch.stack([weight.sum(), (loss * weight).sum(), ((best == target) * weight).sum(), (top * weight).sum(), follow.sum(), agreed.sum()])
    count, loss, right, top, drafts, agreed = total.tolist()
    return {"perplexity": math.exp(loss / count), "top1": right / count, "mean_top_probability": top / count, "mtp_agreement": agreed / drafts}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", required=True)
    parser.add_argument("--valid", required=True)
    parser.add_argument("--minutes", type=float, required=True, help="training time; the learning rate falls to nearly zero over it")
    parser.add_argument("--batch", type=int, default=65536, help="tokens in a step")
    parser.add_argument("--rate", type=float, default=2e-3, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", required=True, help="folder of the checkpoint")
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    began = time.time()
    train, valid = read_rows(args.train, args.seed), read_rows(args.valid, args.seed)
    print("rows", {length: len(ids) for length, (ids, _) in train.items()}, f"read in {time.time() - began:.0f} s", flush=True)

    model = Glm().to(device)
    print("parameters", sum(tensor.numel() for tensor in model.tensors().values()), flush=True)
    decayed = [p for p in model.parameters() if p.dim() > 1]
    plain = [p for p in model.parameters() if p.dim() == 1]
    optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}],
                                  lr=args.rate, betas=(0.9, 0.95), fused=device == "cuda")
    loss_of = head_loss
    if device == "cuda":
        torch._dynamo.config.recompile_limit = 64
        for layer in [*model.layers, model.mtp_layer]:
            layer.compile(dynamic=False)
        loss_of = torch.compile(head_loss, dynamic=False)

    def step(ids, weights):
        main, ahead, loads = model(ids, dtype)
        losses = loss_of(main, model.head, *shifted(ids, weights, 1)), loss_of(ahead, model.head, *shifted(ids, weights, 2))
        (losses[0] + MTP_WEIGHT * losses[1]).backward()
        return losses, loads

    source = batches(train, args.batch, device, torch.Generator().manual_seed(args.seed))
    met = set()
    for ids, weights in source:  # compile both row lengths before the clock starts
        if ids.shape[1] not in met:
            met.add(ids.shape[1])
            step(ids, weights)
            model.zero_grad()
        if len(met) == len(train):
            break
    print(f"ready after {time.time() - began:.0f} s", flush=True)

    start, number, tokens, done = time.time(), 0, 0, 0.0
    while done < 1:
        ids, weights = next(source)
        rate = min(1, (number + 1) / 100) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))
        for group in optimizer.param_groups:
            group["lr"] = args.rate * rate
        losses, loads = step(ids, weights)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        model.balance(loads, 1e-3 * rate)
        number, tokens = number + 1, tokens + ids.numel()
        if number % 10 == 0 and device == "cuda":
            torch.cuda.synchronize()
        done = (time.time() - start) / (60 * args.minutes)
        if number % 200 == 0 or done >= 1:
            load = torch.stack(loads)
            print(f"step {number} {100 * done:.0f} % loss {losses[0].item():.4f} mtp {losses[1].item():.4f} "
                  f"load {load.min().item():.3f}..{load.max().item():.3f} {tokens / (time.time() - start) / 1e3:.0f}k tokens/s", flush=True)

    model.round_weights()
    model.save(args.out)
    with torch.compiler.set_stance("force_eager"):
        measured = evaluate(model, valid, dtype, device)
    result = {"steps": number, "tokens": tokens, "device": torch.cuda.get_device_name() if device == "cuda" else "cpu", **measured}
    print(json.dumps(result), flush=True)
    with open(os.path.join(args.out, "training.json"), "w", encoding="utf-8") as file:
        json.dump(result, file, indent=2)
        file.write("\n")


if __name__ == "__main__":
    main()
