// The op table: every operation that a model needs, each at the size at which a GPU backend fuses.
//
// A backend is one `const OpTable`. Model code calls dev.ops().embed(dev, {...}); there is no other
// spelling. Contracts that hold for every op:
//
//   Order      Ops run in the order issued on their Device, and are asynchronous to the host.
//   Replay     What changes from step to step is read from device memory (BatchView, SampleRow),
//              never from host arguments, so that a captured step replays without the host. Host
//              arguments are shapes, pointers and constants of the model.
//   Padding    T, S and R are the padded sizes of a step; BatchView::counts says how many rows are
//              valid. Rows past that may hold anything, NaN included; no op lets one reach a valid
//              row, the KV cache or the routing. What an op writes to padding rows is unspecified.
//              Likewise cache slots that no valid position has been stored to.
//   Aliasing   An output may alias an input only where its comment says so.
//   Rounding   `act` is the activation type: F32 (exact comparisons, CPU only) or BF16. Sums are
//              float or better. A value is rounded to act exactly where an op's comment says
//              "rounded"; a stored act tensor is rounded by being stored. FP8 values are scaled,
//              saturated and rounded to nearest even.
//   Quantized  A `quantized` output has FP8 values and F32 scales, [T] for one a token or
//              [T, ceil(columns/128)] for one per 128 columns; the scales' rank decides which. It
//              is taken from the values rounded to act: scale = max|x| / 448 (1 when that is 0),
//              value = x / scale. Of `out` and `quantized` at least one must be there.
//   FP8        From end to end, every value that FP8 rounds:
//              - Weights are the checkpoint's values and scales. When BF16 or F32 weights are
//                quantised while loading: scale = max|x| / 448 (1 when that is 0) of an output row,
//                or of a rank's part of it, in F32; value = x / scale.
//              - Of a row that several ranks hold in parts, each quantises its own part: a scale a
//                token is that of the part, and groups of 128 columns begin where it does.
//              - Rows that feed an FP8 linear are quantised by the op that makes them, from values
//                already rounded to act: add_rms_norm (attention's and the FFN's first linear, and
//                the query latent's), attention and mla_attention (the output linear), silu_mul
//                (down). One scale a token beside channel scales, one a token and 128 columns
//                beside block scales. The router, the head and the draft layer's projection read
//                act.
//              - Inside moe_experts h is quantised from unrounded floats, one scale a token and 128
//                columns of M, whichever scales the weights have.
//              - Products are summed in float. Channel and token scales multiply the whole sum,
//                block and column scales the sum of the columns that they have in common, 128 but
//                where a slice cuts a block; then the bias is added, and the result rounded once.
//              - An FP8 tensor that feeds no FP8 linear (kv_b_proj, the draft layer's head) becomes
//                value * scale, rounded to act, while loading.
//              - An FP8 cache stores act values x / scale; attention reads value * scale as float.
//              tests/golden/make_fp8.py says the same in float64, and is what tests hold us to.
//   Sums       An op with `sum_over` gives the sum over those ranks of what each of them computes,
//              as Communicator::AllReduceSum takes it, from values rounded to act. All ranks make
//              the same call. The columns are computed and summed in two parts (output_parts.h), so
//              that a backend can sum the first while it computes the second; what a column is does
//              not depend on that, but for the order of a product's sums on a GPU.
//   Optional   A Tensor or Activation that may be left out has an initialiser.
//   Bounds     Shapes are CHECKed: a wrong one is our bug. Values in device memory (ids, lengths,
//              block numbers) were checked by who made the plan.
//
// The CPU form (kernels/cpu) is the reference that tests hold every other backend to.
#pragma once

#include <cstdint>

#include "kernels/device.h"
#include "kernels/tensor.h"

namespace glm {

class Communicator;

/// A step's input, in device memory. T tokens of S sequences, sequence after sequence.
struct BatchView {
  Tensor token_ids;  // I32 [T]  the token, or ~slot: take last_ids[slot], which the device sampled
  Tensor positions;  // I32 [T]  position of the token in its sequence, from 0
  Tensor token_sequences;  // I32 [T]  which of the S sequences the token belongs to
  Tensor query_starts;     // I32 [S+1]  first token of each sequence in the step; the last entry is
                           // T_valid
  Tensor kv_lengths;       // I32 [S]  tokens in the sequence's cache once this step's are stored
  Tensor block_tables;     // I32 [S, blocks_max]  cache block of positions [i*P, (i+1)*P)
  Tensor logit_tokens;     // I32 [R]  tokens of the step whose logits are wanted
  Tensor counts;           // I32 [3]  valid tokens, sequences, logit rows
  Tensor last_ids;         // I32 [slots]  the newest sampled id of each sequence slot
  // A host argument, as shapes are: valid tokens from here on belong to whole prompts, of at least
  // kWholePromptMin tokens each: all that their sequences have in the cache is this step's.
  // -1: nothing is known.
  int64_t prompts_begin = -1;
};
inline constexpr int32_t kWholePromptMin = 64;

/// The ids that lie behind the K and V of a cache, block by block: what penalties count and what
/// edits look back at. Shared with the blocks, so that a prefix found in the cache brings its ids.
struct TokenCache {
  Tensor ids{};  // I32 [B, P]
};

/// Rows that feed a linear. With FP8 values, row t stands for values[t] * scales[t].
struct Activation {
  Tensor values;    // act or F8E4M3 [T, K]
  Tensor scales{};  // empty, or F32 [T]: one scale a token;
                    // or F32 [T, ceil(K/128)]: one per 128 columns
};

/// A weight matrix, rows are outputs. With FP8 values it stands for values * scales.
struct Weight {
  Tensor values;    // F32, BF16 or F8E4M3 [N, K]; experts: [E, N, K]
  Tensor scales{};  // empty, or F32 [N] ([E, N]): one an output channel;
                    // or F32 [blocks of rows, blocks of columns] ([E, ...]): one a 128 x 128
                    // block; or F32 [N, blocks of columns] ([E, ...]): one a row and 128 columns,
                    // where packing or a rank's slice cuts blocks of rows
  // A rank's slice of a block-scaled weight may begin inside a block: so many columns of the first
  // block are not in the slice, 0..127. Activation groups of 128 columns begin with the slice.
  int64_t scale_column_offset = 0;
};

/// One layer's cache: a block holds P positions of every kv head, [B, K, P, D] each. Latent
/// attention (MLA) has one "head" of L + rope values a position in `keys`, and no `values`. In an
/// FP8 cache a stored value stands for value * scale: x / scale is what is rounded to FP8.
struct KvLayer {
  Tensor keys;      // act or F8E4M3 [B, K, P, D]
  Tensor values{};  // as keys; empty with latent attention
  float key_scale = 1;
  float value_scale = 1;
};

struct EmbedArgs {
  const BatchView& batch;
  Tensor table;                  // act [V, H]: rows vocabulary_begin .. of the model's table
  Tensor out;                    // act [T, H]
  int64_t vocabulary_begin = 0;  // ids outside the table's rows give zeros: another rank has them
};

struct AddRmsNormArgs {
  const BatchView& batch;
  Tensor delta{};     // act [T, H], or empty: nothing is added
  Tensor residual{};  // act [T, H], in and out: residual += delta, rounded; or empty: delta itself
                      // is normalised, and may be a view of columns
  Tensor weight;      // act [H]
  float epsilon = 0;
  Tensor out{};            // act [T, H], or empty. May alias delta, may be a view of columns
  Activation quantized{};  // FP8 [T, H] with scales, or empty
};

struct LinearArgs {
  const BatchView& batch;
  Activation in;                     // [T, K]
  Weight weight;                     // [N, K]
  Tensor bias{};                     // act [N], or empty
  Tensor out;                        // act or F32 [T, N]
  bool per_logit_row = false;        // rows are logit rows: R, and counts[2] of them are valid
  Communicator* sum_over = nullptr;  // null: `out` is this rank's; not with bias or per_logit_row
};

struct NormRopeStoreArgs {
  const BatchView& batch;
  Tensor qkv;       // act [T, (N + 2K) * D], in and out: heads of q, then of k, then of v
  Tensor q_norm{};  // act [D], or empty: no norm
  Tensor k_norm{};  // act [D], or empty: no norm
  float epsilon = 0;
  Tensor rope;  // F32 [positions_max, rope_size]: rope_size/2 cosines, then as many sines
  int64_t query_heads = 0;
  int64_t kv_heads = 0;
  KvLayer cache;
};

struct AttentionArgs {
  const BatchView& batch;
  Tensor queries;  // act [T, N * D], a view of qkv's columns is fine
  KvLayer cache;
  float scale = 0;         // of q.k, before the softmax
  Tensor out{};            // act [T, N * D], or empty
  Activation quantized{};  // FP8 [T, N * D] with scales, or empty
};

struct MlaRopeStoreArgs {
  const BatchView& batch;
  Tensor
      queries;  // act [T, N * (nope + rope)], in and out: a head's plain part, then its rope part
  Tensor
      latent;  // act [T, L + rope]: the latent before its norm, then the rope key. A view is fine
  Tensor latent_norm;  // act [L]
  float epsilon = 0;
  Tensor rope;  // F32 [positions_max, rope]: rope/2 cosines, then as many sines
  int64_t query_heads = 0;
  KvLayer cache;  // keys [B, 1, P, L + rope]
};

struct MlaAttentionArgs {
  const BatchView& batch;
  Tensor queries;   // act [T, N * (nope + rope)], after mla_rope_store
  KvLayer cache;    // keys [B, 1, P, L + rope]
  Tensor kv_up;     // act [N, nope + v, L]: a head's key rows, then its value rows (kv_b_proj)
  float scale = 0;  // of q.k, before the softmax
  Tensor out{};     // act [T, N * v], or empty
  Activation quantized{};  // FP8 [T, N * v] with scales, or empty
};

struct SiluMulArgs {
  const BatchView& batch;
  Tensor gate_up;          // act [T, 2I]: gate, then up
  Tensor out{};            // act [T, I], or empty
  Activation quantized{};  // FP8 [T, I] with scales, or empty
};

/// Which expert computes which token, made by moe_route and read by moe_experts.
/// Pair number t * k + j is the j-th choice of token t.
struct Routing {
  Tensor expert_ids;      // I32 [T, k]
  Tensor expert_weights;  // F32 [T, k]
  Tensor pair_order;      // I32 [T * k]  pair numbers by expert, then by token
  Tensor expert_starts;   // I32 [E + 1]  where each expert's pairs begin in pair_order
};

struct MoeRouteArgs {
  const BatchView& batch;
  Tensor in;               // act [T, H]
  Tensor gate;             // act [E, H]
  Tensor correction_bias;  // F32 [E]
  bool normalize = true;   // divide the k weights by their sum + 1e-20
  float scaling = 1;       // multiplies the weights, last
  Routing out;
};

struct MoeExpertsArgs {
  const BatchView& batch;
  Activation in;  // [T, H]
  Routing routing;
  Weight gate_up;              // [E + s, 2M, H]: an expert's gate rows, then its up rows
  Weight down;                 // [E + s, H, M]
  int64_t shared_experts = 0;  // s, 0 or 1: the last expert, applied to every token with weight 1
  Tensor out;                  // act [T, H]
  Communicator* sum_over = nullptr;  // null: `out` is this rank's
};

struct GatherLogitRowsArgs {
  const BatchView& batch;
  Tensor in;   // act [T, H]
  Tensor out;  // act [R, H]
};

struct StoreTokensArgs {
  const BatchView& batch;
  TokenCache cache;
};

/// How one logit row is sampled. Lives in device memory, an array of R.
struct SampleRow {
  float temperature = 0;         // 0: greedy; top_p, min_p, top_k and seed are then ignored
  float top_p = 1;               // (0, 1]; 1 keeps all
  float min_p = 0;               // [0, 1]; 0 keeps all
  int32_t top_k = 0;             // 0 keeps all
  float repetition_penalty = 1;  // above 0; 1: none. Of ids anywhere before `position`
  float frequency_penalty = 0;   // of ids at [prompt_tokens, position), times their number
  float presence_penalty = 0;    // of ids at [prompt_tokens, position), once
  uint32_t position = 0;  // of the token drawn; with seed and choice it fixes the random numbers
  uint64_t seed = 0;
  uint32_t choice = 0;        // which of a request's n answers this is
  int32_t sequence = 0;       // of the step's S: whose TokenCache blocks the row looks back at
  int32_t prompt_tokens = 0;  // where the generated tokens begin
  int32_t slot = -1;          // last_ids entry that receives the id; -1: none
  int32_t target_id = -1;     // not drawn: this is the id (a prompt's logprobs); -1: draw
  int32_t logprobs = -1;      // how many alternatives are wanted; 0: the id's own only; -1: none
  int32_t mask = -1;          // row of SampleArgs::masks; -1: every id is allowed
  int32_t edits_begin = 0;    // of SampleArgs::edits
  int32_t edits_count = 0;
  int32_t reserved = 0;
};
static_assert(sizeof(SampleRow) == 80);

/// Most alternatives of a row's logprobs.
inline constexpr int32_t kLogprobsMax = 20;

/// Something added to one logit: a bias, or minus infinity for a ban. Lives in device memory.
struct LogitEdit {
  int32_t id = 0;
  float add = 0;
  int32_t until_position = 0x7fffffff;  // holds for rows of positions below this one
  // Holds only where the ids before the row's position are these, of SampleArgs::edit_contexts.
  int32_t context_begin = 0;
  int32_t context_count = 0;
};
static_assert(sizeof(LogitEdit) == 20);

/// The logprobs of a step's rows, of those that want some; the rest is unspecified. A vocabulary of
/// fewer ids than alternatives are wanted ends with ids -1.
struct Logprobs {
  Tensor values{};  // F32 [R, 1 + kLogprobsMax]: of the id, then of the likeliest, falling
  Tensor ids{};     // I32 [R, 1 + kLogprobsMax]: the id, then the likeliest (ties: lower ids first)
  Tensor ranks{};   // I32 [R]: 1 + the number of ids that are likelier than the id
};

struct SampleArgs {
  const BatchView& batch;
  Tensor logits;            // F32 [R, V], or [R, V / ranks] with candidates; unspecified afterwards
  int64_t vocabulary_used;  // ids from here on are padding rows of the embedding: never sampled
  const SampleRow* rows;    // device memory, [R]
  Tensor out_ids;           // I32 [R]; not looked at with candidates
  TokenCache tokens{};      // empty only when no row has penalties or edits with a context
  const LogitEdit* edits = nullptr;        // device memory
  const int32_t* edit_contexts = nullptr;  // device memory
  Tensor masks{};       // U32 bits as I32 [masks, ceil(vocabulary_used / 32)], bit set: allowed
  Logprobs logprobs{};  // empty when no row wants any
  // A rank's slice of the vocabulary: the logits are those of the ids from vocabulary_begin on, and
  // the best of each row goes here for choose_candidates. F32 [R, 2], raw bits; empty: the logits
  // are whole.
  Tensor candidates{};
  int64_t vocabulary_begin = 0;
};

struct ChooseCandidatesArgs {
  const BatchView& batch;
  Tensor candidates;      // F32 [ranks, R, 2], raw bits, contiguous
  const SampleRow* rows;  // device memory, [R]
  Tensor out_ids;         // I32 [R]
};

/// A sequence that drafts after a step. Lives in device memory, an array of D.
struct DraftRow {
  int32_t sequence = 0;         // of the step's S
  int32_t first_logit_row = 0;  // of the step's R; 1 + drafts rows from here on are the sequence's,
                                // of its last 1 + drafts tokens
  int32_t drafts = 0;           // its last tokens in this step that were drafts
};

struct BeginDraftsArgs {
  const BatchView& batch;      // the step
  Tensor ids;                  // I32 [R]  what `sample` drew
  const SampleRow* rows;       // device memory, [R]: the step's
  const DraftRow* draft_rows;  // device memory, [D]
  Tensor draft_count;          // I32 [1]  D_valid, at most D
  BatchView out;               // T = S = R = D; every tensor but last_ids is written
  SampleRow* out_rows;         // device memory, [D]
};

struct AdvanceDraftsArgs {
  BatchView drafts;  // as begin_drafts left it; positions, kv_lengths, logit_tokens change
  SampleRow* rows;   // device memory, [D]
};

struct OpTable {
  /// Whether linear and moe_experts take weights whose blocks of scales are cut: a scale a row and
  /// 128 columns, and a scale_column_offset.
  bool takes_cut_blocks = false;

  /// out[t] = table[id of t - vocabulary_begin], or zeros when that is no row of the table. The id
  /// is token_ids[t], or last_ids[~token_ids[t]] when that is negative.
  void (*embed)(Device&, const EmbedArgs&);

  /// residual += delta (float sum, rounded), then n = residual * (mean(residual^2) + epsilon)^-1/2
  /// (float, rounded), then n * weight (rounded): to `out` and to `quantized`. Without a residual,
  /// delta stands in its place and is left as it is.
  void (*add_rms_norm)(Device&, const AddRmsNormArgs&);

  /// out = in . weight^T + bias. Float sum; scales and bias are applied to the sum; rounded once if
  /// out is act. FP8 weights with channel scales take FP8 activations with token scales; block
  /// scales take 128-column scales.
  void (*linear)(Device&, const LinearArgs&);

  /// For each token: each head of q and k is normalised if its norm weight is there (as
  /// add_rms_norm: n rounded, product rounded), then the first rope_size values are rotated by the
  /// position's angles, NeoX form: pair (i, i + rope_size/2) (float, rounded). q goes back to qkv;
  /// k and v go to the cache block that block_tables names for the position. k and v in qkv are
  /// unspecified afterwards.
  void (*norm_rope_store)(Device&, const NormRopeStoreArgs&);

  /// Causal attention over the paged cache: token t sees its sequence's positions 0 ..
  /// positions[t]. Query head h reads kv head h / (N / K). Softmax in float,
  /// probabilities unrounded (a GPU may round them to act); the weighted sum is float, rounded
  /// once, to `out` and to `quantized`. Prefill, decode and mixed steps all come here.
  void (*attention)(Device&, const AttentionArgs&);

  /// For each token: the latent is normalised (as add_rms_norm), the rope key and every head's rope
  /// part are rotated by the position's angles, interleaved form: pair (2i, 2i + 1) with angle i
  /// (float, rounded; the pair stays where it is). Queries go back in place; normed latent and
  /// rotated rope key go to the cache block that block_tables names for the position.
  void (*mla_rope_store)(Device&, const MlaRopeStoreArgs&);

  /// Causal latent attention. With c the cached latent and r the cached rope key of a position, the
  /// score of head h is (q_plain . K_h c + q_rope . r) * scale, K_h the head's key rows of kv_up;
  /// the head's output is V_h (sum of p c), V_h its value rows. A backend may absorb K_h into the
  /// query (then K_h^T q_plain is rounded to act) or expand K_h c (then that is): the two differ by
  /// rounding only. Softmax in float (a GPU may round probabilities to act); sum of p c rounded to
  /// act, or V_h c in the expanded form; the output rounded once, to `out` and to `quantized`.
  void (*mla_attention)(Device&, const MlaAttentionArgs&);

  /// out = silu(gate) * up: float, rounded once, to `out` and to `quantized`.
  void (*silu_mul)(Device&, const SiluMulArgs&);

  /// Logits l = gate . in in float, s = 1 / (1 + exp(-l)). The k experts of largest s +
  /// correction_bias are chosen (ties: lower expert first), listed in falling order; a choice's
  /// weight is its s, normalised and scaled as told. Padding tokens are in no expert's list:
  /// expert_starts[E] is k * valid tokens.
  void (*moe_route)(Device&, const MoeRouteArgs&);

  /// out[t] = sum_j weight_j * down_j(h_j) + shared(t), h = silu(gate) * up with gate and up in
  /// float and h rounded to act; with FP8 weights h is instead quantised with one scale per (token,
  /// 128 columns of M). The sum is float, in order j = 0..k-1, then the shared expert; rounded
  /// once (a GPU may round each down_j(h_j) to act first).
  void (*moe_experts)(Device&, const MoeExpertsArgs&);

  /// out[r] = in[logit_tokens[r]].
  void (*gather_logit_rows)(Device&, const GatherLogitRowsArgs&);

  /// The ids of the step's tokens (resolved as in embed) to the places of the TokenCache that
  /// block_tables names for their positions.
  void (*store_tokens)(Device&, const StoreTokensArgs&);

  /// One id a row, in this order, all in float:
  ///   1. logprobs: log softmax of the logits as they came, over vocabulary_used ids.
  ///   2. penalties, counting the sequence's ids in `tokens` before the row's position: repetition
  ///      (a logit above 0 is divided, others multiplied), then frequency, then presence.
  ///   3. edits: `add` to the logit of `id`, of each edit that holds. 4. mask: others are banned.
  ///   5. target_id, if there is one; or greedy: the largest logit, ties: lowest id; or a draw:
  ///      logits / temperature; keep the top_k largest (ties: lower ids first); of the softmax of
  ///      these keep the shortest run of falling probabilities that reaches top_p (ties: lower ids
  ///      first); of these those with at least min_p times the largest probability. Of what is
  ///      kept, the id with the largest logit / temperature - log(PhiloxExponential(seed, kSample,
  ///      position, choice, id)), which has the softmax's distribution (ties: lowest id).
  /// So a draw depends on the row alone, and two rows of one position whose logits are alike mostly
  /// draw the same id: a draft is right when the model draws it too, and drafting changes no token.
  /// A NaN logit counts as minus infinity, which is never drawn; when all are minus infinity after
  /// step 4, the lowest id allowed by the mask is the result. The id also goes to last_ids[slot].
  ///
  /// With `candidates` the same over a slice of the ids, for rows that need no look at the others:
  /// without logprobs and target_id, and greedy or without top_k, top_p and min_p. Of each row the
  /// best id of the slice goes to `candidates` as two words, a key (U32) and the id (I32); out_ids
  /// and last_ids stay as they are. A key is 0 where the slice has no id that the mask allows, 1
  /// where all those are minus infinity (the id is the lowest), else above 1 and rising with what
  /// is compared: the logit of a greedy row, logit / temperature - log(exponential) of one that
  /// draws.
  void (*sample)(Device&, const SampleArgs&);

  /// Of each row the id of the largest key (ties: lowest id; 0 where all keys are), to out_ids and
  /// to last_ids[slot]. With candidates of slices that make up the vocabulary this is what `sample`
  /// gives of the whole logits, to the bit.
  void (*choose_candidates)(Device&, const ChooseCandidatesArgs&);

  /// What the draft layer goes on from after a step. For each draft row d, with a = how many of the
  /// sequence's drafts in this step were drawn by the rows before them, one after the other, t =
  /// logit_tokens[first_logit_row + a] and p = positions[t]: out.logit_tokens[d] = t, positions[d]
  /// = p, kv_lengths[d] = p + 1, token_sequences[d] = d, query_starts = 0, 1, .. D_valid and that
  /// for padding, counts = D_valid three times, block_tables[d] = those of the sequence;
  /// token_ids[d] = ~d, to be found in last_ids. out_rows[d] = the row of t, for position p + 2,
  /// with sequence and slot d, without penalties, edits, mask, target and logprobs. The ids of
  /// drafts are in the batch's token_ids, never behind a slot.
  void (*begin_drafts)(Device&, const BeginDraftsArgs&);

  /// On to the next draft, of whose token the draft just drawn is the input: positions and
  /// kv_lengths grow by 1, logit_tokens[d] = d, positions of rows grow by 1.
  void (*advance_drafts)(Device&, const AdvanceDraftsArgs&);
};

}  // namespace glm
