// Messages of router.proto to an ExchangeRequest.
//
// Who calls: GrpcFront, on gRPC's threads. Pure functions; errors are INVALID_ARGUMENT, or
// UNIMPLEMENTED, and name the field, its value and the limit. What a range check of the exchange
// finds is left to it.
#pragma once

#include "absl/status/statusor.h"
#include "proto/router.pb.h"
#include "router/exchange.h"

namespace glm::router {

absl::StatusOr<ExchangeRequest> ReadGenerateRequest(const glmserve::v1::GenerateRequest& message);
absl::StatusOr<ExchangeRequest> ReadChatRequest(const glmserve::v1::ChatRequest& message);
/// How many answers are asked for.
absl::StatusOr<int32_t> ReadAnswers(const glmserve::v1::GenerationParams& params);

}  // namespace glm::router
