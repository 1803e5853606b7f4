// Logprobs as OpenAI's API writes them; and the prompt's, which it does not have.
//
// Who calls: OpenAiFront, on its loop. Pure functions. A logprob of minus infinity is written as
// -9999, since JSON has none.
#pragma once

#include <cstdint>
#include <vector>

#include "router/exchange.h"
#include "router/text/chat_format.h"

namespace glm::router {

/// A chat's {"content": [...], "refusal": null}. A token that is no whole characters has U+FFFD in
/// its text and its own bytes in "bytes".
Json ChatLogprobsJson(const std::vector<TokenScore>& scores);

/// A completion's twin lists. `top`: alternatives a token; the token itself is always among them.
/// `characters`: of the answer's text before these tokens; moved on. A token that is no whole
/// characters is written as bytes:\xe4\xbd. The first token of an echoed prompt has nulls.
Json CompletionLogprobsJson(const std::vector<TokenScore>& scores, int32_t top,
                            int64_t* characters);

/// A list with null for the first token, then an object of token ids to logprob, rank and text.
Json PromptLogprobsJson(const std::vector<TokenScore>& scores, int32_t top);

}  // namespace glm::router
