// What ../native.py passes to the kernel, field by field as in its _Call.

#pragma once

#include <cstdint>

namespace {

struct View {  // "part b h n c": strides count elements; that of the last axis is 1
  void* data;
  int64_t part, batch, head, token;
};

struct Pairs {  // "b h n m": strides count elements; data: null if there are none
  void* data;
  int64_t batch, head, query, key;
};

struct Plan {  // for sequences of one kind: the first num_global tokens are global, the others are the body
  int64_t num_global, block, causal;
  int64_t queries, query_blocks;  // of the body
  int64_t keys, blocks;           // of the body; as many as queries, unless the sequence attends to another one
  // The body's tokens: in order, or slot by slot by this index (-1: an empty slot); keys and values are slot by slot.
  const int64_t* index;
  const int64_t* start;      // of each query block's columns; query_blocks + 1
  const int64_t* columns;    // key blocks
  const int64_t* mask_at;    // where a query block's mask begins, -1 without one
  const int64_t* mask_step;  // from the mask of one key slot to the next: `block`, or 1 if all queries share them
  const uint8_t* masks;      // 1: may be attended to
};

struct Sequence {  // one of the batch, or one of several in a row
  int64_t plan, batch;
  int64_t first, first_key;  // where its tokens and its keys begin in their rows; global tokens come first
};

struct Call {
  double scale, dropout_scale;  // dropout_scale: the factor of the weights that are not dropped
  int64_t dropped, seed;        // dropped: how many of 2^32 weights
  int64_t threads, parts;       // parts: of the query blocks; if there are several, dk and dv are sums of each
  int64_t plan_count, count;    // count: of the sequences
  int64_t together, fresh;      // so many sequences have the same dbias; fresh: there is nothing in it yet
  int64_t heads, length, key_length, c, e;  // length, key_length: of a row of tokens and of keys
  const Plan* plans;
  const Sequence* sequences;
  const uint8_t* key_mask;  // "b key_length", 1: may be attended to; or null
  View q, k, v, out, grad, dq, dk, dv;
  Pairs bias, dbias;
  void* lse;  // "b h n", contiguous
  int64_t outcome;
};

enum : int64_t {
  DONE,
  NOT_FINITE,  // a NaN or inf in out (dq, in the backward pass)
  NO_MEMORY,
};

}  // namespace
