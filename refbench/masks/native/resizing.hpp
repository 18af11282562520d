// Resizes many run-length codes by sampling, without decoding pixels.

#pragma once

#include <vector>

#include "pairs.hpp"

namespace refbench {

// How the masks of one size are resized: the source column of each new column and, for each source row, the first new
// row that comes from it or a later one; both at an offset of one long list.
struct Sampling {
  const i64* columns;
  const i64* columns_at;
  const i64* first_rows;
  const i64* first_rows_at;
  const i64* heights;
  const i64* widths;
};

// The canonical codes of n resized masks, one after the other; code i is text[at[i]] to text[at[i + 1]]. All codes must
// have been checked.
inline void resize_codes(Codes codes, Sizes sizes, Sampling to, std::vector<u8>& text, std::vector<i64>& at) {
  Runs runs, found;
  Buffer<u8> written;
  at.assign(1, 0);
  at.reserve(static_cast<std::size_t>(sizes.n) + 1);
  for (i64 i = 0; i < sizes.n; ++i) {
    const i64 height = sizes.heights[i], size = height * sizes.widths[i];
    codes.decode_into(i, size, runs);
    const i64* columns = to.columns + to.columns_at[i];
    const i64* first_row = to.first_rows + to.first_rows_at[i];
    i64 room = 2 * runs.n + 2 * to.widths[i];
    while (true) {
      found.room_for(room);
      found.n = gather(runs.view(), height, columns, to.widths[i], first_row, to.heights[i], found.starts.data(),
                       found.ends.data(), room);
      if (found.n <= room) break;
      // An enlarged mask can have more runs than the original.
      room = found.n;
    }
    join_touching(found);
    u8* code = written.room_for(7 * (2 * found.n + 1));
    const i64 length = encode(found.view(), to.heights[i] * to.widths[i], code);
    text.insert(text.end(), code, code + length);
    at.push_back(static_cast<i64>(text.size()));
  }
}

}  // namespace refbench
