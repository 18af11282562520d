// Erosion, dilation and half-widths of masks, on their runs.

#pragma once

#include "runs.hpp"

namespace refbench {

// Erodes by a square of 2 d + 1 pixels; its memory is used again for the next mask.
//
// The square is separable: every vertical run loses d pixels at both ends, then each column is intersected with its d
// neighbours on either side. The method of van Herk (1992) and Gil & Werman (1993) needs two intersections a column for
// any d: of the columns before the end of a block, and of those after it.
class Eroder {
 public:
  // Everything outside the image is background or, if `framed`, foreground.
  void erode(View runs, i64 height, i64 width, i64 d, bool framed, Runs& out) {
    const i64 window = 2 * d + 1;
    out.n = 0;
    if (runs.n == 0 || (!framed && (height < window || width < window))) return;
    i64 first = runs.starts[0] / height;
    const i64 last = (runs.ends[runs.n - 1] - 1) / height;
    // In a frame, full columns continue a mask that reaches the left or right border.
    const i64 before = framed && first == 0 ? d : 0;
    const i64 after = framed && last == width - 1 ? d : 0;
    columns_ = last - first + 1 + before + after;
    first -= before;
    if (columns_ < window) return;
    const bool single = shrink(runs, height, d, framed, first, before, after);
    if (column_at_.data()[columns_] < window) return;
    if (single) {
      intersect_single(height, d, first, out);
    } else {
      intersect_lists(height, d, first, out);
    }
  }

 private:
  // The vertical step: the runs of each column, shortened by d at both ends. Those of column first + c are
  // column_at[c] to column_at[c + 1]. Returns whether no column has two.
  bool shrink(View runs, i64 height, i64 d, bool framed, i64 first, i64 before, i64 after) {
    i64* at = column_at_.room_for(columns_ + 1);
    i64* lows = lows_.room_for(runs.n + columns_);
    i64* highs = highs_.room_for(runs.n + columns_);
    i64 count = 0, column = 0;
    bool single = true;
    at[0] = 0;
    for (i64 c = 0; c < before; ++c) {
      column = c;
      at[c] = count;
      lows[count] = 0;
      highs[count] = height;
      ++count;
    }
    // The column that the last run was in; most runs are there or in the next one, which saves a division.
    i64 c = before, top = (first + before) * height;
    for (i64 i = 0; i < runs.n; ++i) {
      i64 position = runs.starts[i];
      const i64 end = runs.ends[i];
      if (position >= top + height) {
        const i64 ahead = position < top + 2 * height ? 1 : (position - top) / height;
        c += ahead;
        top += ahead * height;
      }
      while (true) {
        const i64 stop = std::min(end, top + height);
        const i64 low = framed && position == top ? 0 : position - top + d;
        const i64 high = framed && stop == top + height ? height : stop - top - d;
        if (high > low) {
          while (column < c) at[++column] = count;
          single = single && count == at[column];
          lows[count] = low;
          highs[count] = high;
          ++count;
        }
        position = stop;
        if (position >= end) break;
        ++c;
        top += height;
      }
    }
    for (i64 right = columns_ - after; right < columns_; ++right) {
      while (column < right) at[++column] = count;
      lows[count] = 0;
      highs[count] = height;
      ++count;
    }
    while (column < columns_) at[++column] = count;
    return single;
  }

  // The horizontal step, if no column has two runs.
  void intersect_single(i64 height, i64 d, i64 first, Runs& out) {
    const i64 window = 2 * d + 1;
    const i64* at = column_at_.data();
    i64* low_one = low_one_.room_for(columns_);
    i64* high_one = high_one_.room_for(columns_);
    for (i64 c = 0; c < columns_; ++c) {
      const bool has = at[c + 1] > at[c];
      low_one[c] = has ? lows_.data()[at[c]] : 1;
      high_one[c] = has ? highs_.data()[at[c]] : 0;
    }
    i64* suffix_low = suffix_lows_.room_for(window);
    i64* suffix_high = suffix_highs_.room_for(window);
    out.room_for(columns_);
    i64 *starts = out.starts.data(), *ends = out.ends.data();
    i64 count = 0;
    for (i64 block = 0; block < columns_ - window + 1; block += window) {
      i64 low = 0, high = height;
      for (i64 j = window - 1; j >= 0; --j) {
        low = std::max(low, low_one[block + j]);
        high = std::min(high, high_one[block + j]);
        suffix_low[j] = low;
        suffix_high[j] = high;
      }
      i64 prefix_low = 0, prefix_high = height;
      const i64 own = std::min(window, columns_ - window + 1 - block);
      i64 top = (first + block + d) * height;
      for (i64 j = 0; j < own; ++j) {
        if (j > 0) {
          prefix_low = std::max(prefix_low, low_one[block + window + j - 1]);
          prefix_high = std::min(prefix_high, high_one[block + window + j - 1]);
        }
        low = std::max(suffix_low[j], prefix_low);
        high = std::min(suffix_high[j], prefix_high);
        starts[count] = top + low;
        ends[count] = top + high;
        count += high > low;
        top += height;
      }
    }
    out.n = count;
  }

  // The horizontal step for columns with several runs. The intersection of m and k runs has fewer than m + k.
  void intersect_lists(i64 height, i64 d, i64 first, Runs& out) {
    const i64 window = 2 * d + 1;
    const i64* at = column_at_.data();
    const i64 all = at[columns_];
    i64* prefix_low = prefix_lows_.room_for(all + 1);
    i64* prefix_high = prefix_highs_.room_for(all + 1);
    i64* next_low = next_lows_.room_for(all + 1);
    i64* next_high = next_highs_.room_for(all + 1);
    i64 count = 0;
    for (i64 block = 0; block < columns_ - window + 1; block += window) {
      find_suffixes(block + window, window, height);
      const i64* suffix_at = suffix_at_.data();
      prefix_low[0] = 0;
      prefix_high[0] = height;
      i64 prefix = 1;
      const i64 own = std::min(window, columns_ - window + 1 - block);
      for (i64 j = 0; j < own; ++j) {
        if (j > 0) {
          prefix = intersect(column(block + window + j - 1), {prefix_low, prefix_high, prefix}, next_low, next_high, 0);
          std::swap(prefix_low, next_low);
          std::swap(prefix_high, next_high);
        }
        const i64 begin = suffix_at[window - j], end = suffix_at[window - j + 1];
        out.room_for(count + end - begin + prefix);
        i64 *starts = out.starts.data(), *ends = out.ends.data();
        const i64 here = count;
        count = intersect({suffix_lows_.data() + begin, suffix_highs_.data() + begin, end - begin},
                          {prefix_low, prefix_high, prefix}, starts, ends, count);
        const i64 top = (first + block + j + d) * height;
        for (i64 r = here; r < count; ++r) {
          starts[r] += top;
          ends[r] += top;
        }
      }
    }
    out.n = count;
  }

  // The intersections of the last 0, 1, ... `window` columns before `end`; entry k is suffix_at[k] to suffix_at[k + 1],
  // and entry 0 is a full column.
  void find_suffixes(i64 end, i64 window, i64 height) {
    const i64* at = column_at_.data();
    i64* suffix_at = suffix_at_.room_for(window + 2);
    suffix_lows_.room_for(1)[0] = 0;
    suffix_highs_.room_for(1)[0] = height;
    suffix_at[0] = 0;
    suffix_at[1] = 1;
    for (i64 k = 0; k < window; ++k) {
      const i64 c = end - 1 - k, used = suffix_at[k + 1], begin = suffix_at[k];
      const i64 needed = 2 * used - begin + at[c + 1] - at[c];
      i64* low = suffix_lows_.room_for(needed);
      i64* high = suffix_highs_.room_for(needed);
      suffix_at[k + 2] = intersect(column(c), {low + begin, high + begin, used - begin}, low, high, used);
    }
  }

  View column(i64 c) const {
    const i64* at = column_at_.data();
    return {lows_.data() + at[c], highs_.data() + at[c], at[c + 1] - at[c]};
  }

  i64 columns_ = 0;
  Buffer<i64> column_at_, lows_, highs_, low_one_, high_one_;
  Buffer<i64> suffix_at_, suffix_lows_, suffix_highs_, prefix_lows_, prefix_highs_, next_lows_, next_highs_;
};

// Dilates by a square of 2 d + 1 pixels, cut at the image's borders: the complement of the eroded complement, where the
// outside of the image is foreground.
class Dilater {
 public:
  void dilate(View runs, i64 height, i64 width, i64 d, Eroder& eroder, Runs& out) {
    complement(runs, height * width, around_);
    eroder.erode(around_.view(), height, width, d, true, left_);
    complement(left_.view(), height * width, out);
  }

 private:
  Runs around_, left_;
};

// The largest d <= limit for which a square of 2 d + 1 pixels fits into the mask; 0 if none does.
inline i64 half_width(View runs, i64 height, i64 width, i64 limit, Eroder& eroder, Runs& scratch) {
  i64 low = 0, high = limit;
  while (low < high) {
    const i64 middle = (low + high + 1) / 2;
    eroder.erode(runs, height, width, middle, false, scratch);
    if (scratch.n > 0) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return low;
}

}  // namespace refbench
