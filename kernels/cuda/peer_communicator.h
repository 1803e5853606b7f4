// Ranks on GPUs that reach each other's memory: sums fused with the norm behind them, and gathers.
//
// All ranks are threads of one process, so an address of one GPU's memory is good on all that were
// given access. A rank's mailbox lies in its own memory; the others write into it, and it polls
// what is near. Every call of a communicator is one kernel and has a number, its epoch, kept in
// device memory (a replayed graph counts on). A number written beside or behind data says that the
// data of that call is there; numbers are 32 bits wide and never reset.
//
// Small sums, in one shot: every rank sends its rows to all others, 4 bytes of data beside 4 bytes
// of epoch, written and read as 8 bytes that arrive together. So there is no fence and nothing to
// wait for but the data. Two halves of the mailbox are used by turns: a rank that writes for call
// e + 2 has seen data of call e + 1 of all others, whose kernel of call e had ended by then.
//
// Large sums, in two: rows are dealt to the ranks by number modulo ranks. Each reads its rows from
// all ranks' memory, adds them in rank order, and writes the sum where it read, in the memory of
// all, then the row's epoch into all mailboxes. No rank but that one touches a row before its epoch
// is there, so this is in place. A block sums several rows at a time, in groups of threads that
// wait apart from each other, since a row's loads and its stores each take some 2 us over a link.
//
// Gathers read the others' tensors where they lie, and end when all have read.
//
// Either way the sum is taken in rank order in float and rounded once: the same bits on every rank
// and by every way.
//
// A sum in two calls has its first columns summed on a stream of its own, by few blocks, beside the
// product of the others (side_stream.h). Its calls are in the order of all calls: the second waits
// for the first, and the next one for the second.
//
// Ranks that share a GPU wait for each other by kernels that hold SMs meanwhile. A rank has one
// such kernel at a time, on either stream, and all of them together have at most half of the SMs in
// blocks: what a rank must compute before it comes finds the other half free.
//
// Who calls: the rank threads, each its own communicator. NVLink multicast is not used.
#pragma once

#include <memory>

#include "kernels/communicator.h"

namespace glm::cuda {

/// Bytes that a rank needs of its device.
int64_t PeerMailboxBytes(const GpuMeetingOptions& options);

/// REQUIRES that every pair of the devices can access each other's memory.
std::unique_ptr<Meeting> CreatePeerMeeting(const GpuMeetingOptions& options);

}  // namespace glm::cuda
