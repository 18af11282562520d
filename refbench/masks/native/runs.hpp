// Masks as runs of foreground: half-open intervals [start, end) of the column-major pixel index, sorted and disjoint.
// Nothing here decodes pixels. Memory depends on the data that was read, not on the sizes that a file states.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <utility>

namespace refbench {

using i64 = std::int64_t;
using u8 = std::uint8_t;

// What `decode` returns for a code that is no mask of the stated size.
enum : i64 { BAD_CHARACTER = -1, TRUNCATED = -2, TOO_LONG = -3, NEGATIVE = -4, WRONG_SUM = -5 };

// Values without initialisation, whose memory is used again for the next mask.
template <class T>
class Buffer {
 public:
  Buffer() = default;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { std::free(data_); }

  // Room for at least n values; what is there is kept.
  T* room_for(i64 n) {
    if (n > room_) {
      const i64 wanted = std::max<i64>(n, 2 * room_);
      void* grown = std::realloc(data_, static_cast<std::size_t>(wanted) * sizeof(T));
      if (grown == nullptr) throw std::bad_alloc();
      data_ = static_cast<T*>(grown);
      room_ = wanted;
    }
    return data_;
  }
  T* data() { return data_; }
  const T* data() const { return data_; }

 private:
  T* data_ = nullptr;
  i64 room_ = 0;
};

// Runs of a mask that somebody else owns.
struct View {
  const i64* starts;
  const i64* ends;
  i64 n;
};

// Runs of a mask with their memory.
struct Runs {
  Buffer<i64> starts, ends;
  i64 n = 0;

  void room_for(i64 count) {
    starts.room_for(count);
    ends.room_for(count);
  }
  View view() const { return {starts.data(), ends.data(), n}; }
};

// The number of runs of a compressed COCO run-length code of `size` pixels, or a negative error; `starts` and `ends`
// need room for length / 2 + 1 runs.
//
// Source: cocoapi common/maskApi.c, rleFrString. A character carries five bits of a count; a sixth bit says that the
// count goes on. From the fourth count on, the code has the difference to the count two positions earlier.
inline i64 decode(const u8* code, i64 length, i64 size, i64* starts, i64* ends) {
  i64 position = 0, before = 0, before2 = 0, index = 0, n = 0, read = 0;
  while (index < length) {
    i64 value = 0;
    int shift = 0;
    bool more = true;
    while (more) {
      if (index >= length) return TRUNCATED;
      const i64 bits = static_cast<i64>(code[index]) - 48;
      ++index;
      if (bits < 0 || bits > 63) return BAD_CHARACTER;
      if (shift > 30) return TOO_LONG;
      value |= (bits & 31) << shift;
      shift += 5;
      more = (bits & 32) != 0;
      if (!more && (bits & 16) != 0) value -= static_cast<i64>(1) << shift;
    }
    if (read > 2) value += before2;
    if (value < 0) return NEGATIVE;
    before2 = before;
    before = value;
    if (value > size - position) return WRONG_SUM;
    if ((read & 1) == 1 && value > 0) {
      if (n > 0 && ends[n - 1] == position) {
        ends[n - 1] = position + value;
      } else {
        starts[n] = position;
        ends[n] = position + value;
        ++n;
      }
    }
    position += value;
    ++read;
  }
  return position == size ? n : static_cast<i64>(WRONG_SUM);
}

// Decode into runs with their own memory.
inline i64 decode(const u8* code, i64 length, i64 size, Runs& out) {
  out.room_for(length / 2 + 1);
  const i64 n = decode(code, length, size, out.starts.data(), out.ends.data());
  out.n = std::max<i64>(n, 0);
  return n;
}

// Write the canonical code to `out`, which needs 7 characters for each of the 2 n + 1 counts; returns its length.
// Source: rleToString, in the same file.
inline i64 encode(View runs, i64 size, u8* out) {
  i64 length = 0, before = 0, before2 = 0, position = 0, written = 0;
  for (i64 i = 0; i <= runs.n; ++i) {
    for (int part = 0; part < 2; ++part) {
      i64 count;
      if (i == runs.n) {
        count = size - position;
        if (part == 1 || (count == 0 && written > 0)) break;
        position = size;
      } else {
        const i64 next = part == 0 ? runs.starts[i] : runs.ends[i];
        count = next - position;
        position = next;
      }
      i64 value = written > 2 ? count - before2 : count;
      before2 = before;
      before = count;
      ++written;
      bool more = true;
      while (more) {
        i64 bits = value & 31;
        value >>= 5;
        more = (bits & 16) != 0 ? value != -1 : value != 0;
        if (more) bits |= 32;
        out[length++] = static_cast<u8>(bits + 48);
      }
    }
  }
  return length;
}

inline i64 area(View runs) {
  i64 total = 0;
  for (i64 i = 0; i < runs.n; ++i) total += runs.ends[i] - runs.starts[i];
  return total;
}

// Number of pixels that are in both masks. Without branches: which run ends first is hard to predict.
inline i64 intersection(View a, View b) {
  i64 total = 0, i = 0, j = 0;
  while (i < a.n && j < b.n) {
    const i64 end_a = a.ends[i], end_b = b.ends[j];
    const i64 low = std::max(a.starts[i], b.starts[j]);
    const i64 high = std::min(end_a, end_b);
    total += std::max<i64>(high - low, 0);
    const i64 first = end_a < end_b;
    i += first;
    j += 1 - first;
  }
  return total;
}

// Write the pixels of both a and b from position `at` of the output on; returns the end of what was written.
inline i64 intersect(View a, View b, i64* starts, i64* ends, i64 at) {
  if (a.n == 1 && b.n == 1) {
    // The columns of most masks.
    starts[at] = std::max(a.starts[0], b.starts[0]);
    ends[at] = std::min(a.ends[0], b.ends[0]);
    return at + (ends[at] > starts[at]);
  }
  i64 i = 0, j = 0;
  while (i < a.n && j < b.n) {
    const i64 end_a = a.ends[i], end_b = b.ends[j];
    const i64 low = std::max(a.starts[i], b.starts[j]);
    const i64 high = std::min(end_a, end_b);
    if (high > low) {
      starts[at] = low;
      ends[at] = high;
      ++at;
    }
    const i64 first = end_a < end_b;
    i += first;
    j += 1 - first;
  }
  return at;
}

// The pixels in a or b; the output needs room for a.n + b.n runs. Returns their number; none of them touch.
inline i64 unite(View a, View b, i64* starts, i64* ends) {
  i64 count = 0, i = 0, j = 0;
  while (i < a.n || j < b.n) {
    const bool first = j == b.n || (i < a.n && a.starts[i] <= b.starts[j]);
    const i64 start = first ? a.starts[i] : b.starts[j], end = first ? a.ends[i] : b.ends[j];
    (first ? i : j) += 1;
    if (count > 0 && start <= ends[count - 1]) {
      ends[count - 1] = std::max(ends[count - 1], end);
    } else {
      starts[count] = start;
      ends[count] = end;
      ++count;
    }
  }
  return count;
}

// The pixels in none of the runs.
inline void complement(View runs, i64 size, Runs& out) {
  out.room_for(runs.n + 1);
  i64 *starts = out.starts.data(), *ends = out.ends.data();
  i64 count = 0, position = 0;
  for (i64 i = 0; i < runs.n; ++i) {
    if (runs.starts[i] > position) {
      starts[count] = position;
      ends[count] = runs.starts[i];
      ++count;
    }
    position = runs.ends[i];
  }
  if (position < size) {
    starts[count] = position;
    ends[count] = size;
    ++count;
  }
  out.n = count;
}

// Write the pixels of a that are not in b; the output needs room for a.n + b.n runs. Returns their number.
inline i64 subtract(View a, View b, i64* starts, i64* ends) {
  i64 count = 0, j = 0;
  for (i64 i = 0; i < a.n; ++i) {
    i64 position = a.starts[i];
    while (j < b.n && b.ends[j] <= position) ++j;
    for (i64 k = j; k < b.n && b.starts[k] < a.ends[i]; ++k) {
      if (b.starts[k] > position) {
        starts[count] = position;
        ends[count] = b.starts[k];
        ++count;
      }
      position = std::max(position, b.ends[k]);
    }
    if (position < a.ends[i]) {
      starts[count] = position;
      ends[count] = a.ends[i];
      ++count;
    }
  }
  return count;
}

// Join runs that touch, as a canonical code needs it.
inline void join_touching(Runs& runs) {
  i64 *starts = runs.starts.data(), *ends = runs.ends.data();
  i64 count = 0;
  for (i64 k = 0; k < runs.n; ++k) {
    if (count > 0 && ends[count - 1] == starts[k]) {
      ends[count - 1] = ends[k];
    } else {
      starts[count] = starts[k];
      ends[count] = ends[k];
      ++count;
    }
  }
  runs.n = count;
}

// Resize by sampling: column j of the result is column columns[j] of the mask, with columns non-decreasing; for each row
// r in 0..height, first_row[r] is the first row of the result that comes from row r or a later one. Fills the output up
// to `room` runs, and returns the number of all; runs may touch.
inline i64 gather(View runs, i64 height, const i64* columns, i64 width, const i64* first_row, i64 new_height, i64* starts,
                  i64* ends, i64 room) {
  i64 found = 0, first = 0;
  for (i64 j = 0; j < width; ++j) {
    const i64 low = columns[j] * height, high = low + height;
    while (first < runs.n && runs.ends[first] <= low) ++first;
    for (i64 k = first; k < runs.n && runs.starts[k] < high; ++k) {
      const i64 top = first_row[std::max(runs.starts[k], low) - low];
      const i64 bottom = first_row[std::min(runs.ends[k], high) - low];
      if (bottom > top) {
        if (found < room) {
          starts[found] = j * new_height + top;
          ends[found] = j * new_height + bottom;
        }
        ++found;
      }
    }
  }
  return found;
}

}  // namespace refbench
