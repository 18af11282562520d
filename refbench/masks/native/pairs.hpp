// Counts of many pairs of masks, which are given as run-length codes one after the other: code i is codes[at[i]] to
// codes[at[i + 1]]. What is counted, and why, is told beside the same functions in refbench/masks/plain/batches.py.

#pragma once

#include <cstring>
#include <vector>

#include "morphology.hpp"

namespace refbench {

struct Codes {
  const u8* text;
  const i64* at;

  i64 decode_into(i64 i, i64 size, Runs& out) const { return decode(text + at[i], at[i + 1] - at[i], size, out); }
};

struct Sizes {
  const i64* heights;
  const i64* widths;
  i64 n;
};

// Columns: intersection, union, area of the prediction, of the target, intersection and union of their inner bands.
// Returns -1, or the position of the first invalid code: 2 i for the prediction of pair i, 2 i + 1 for its target.
inline i64 count_pairs(Codes predictions, Codes targets, Sizes sizes, const i64* bands_px, i64* out) {
  Runs p, t, eroded_p, eroded_t;
  Eroder eroder;
  for (i64 i = 0; i < sizes.n; ++i, out += 6) {
    const i64 height = sizes.heights[i], width = sizes.widths[i], size = height * width;
    if (predictions.decode_into(i, size, p) < 0) return 2 * i;
    if (targets.decode_into(i, size, t) < 0) return 2 * i + 1;
    const i64 area_p = area(p.view()), area_t = area(t.view());
    const i64 both = intersection(p.view(), t.view());
    eroder.erode(p.view(), height, width, bands_px[i], false, eroded_p);
    eroder.erode(t.view(), height, width, bands_px[i], false, eroded_t);
    const i64 band_p = area_p - area(eroded_p.view()), band_t = area_t - area(eroded_t.view());
    i64 band_both = both;
    if (both > 0) {
      band_both -= intersection(p.view(), eroded_t.view());
      band_both -= intersection(eroded_p.view(), t.view());
      band_both += intersection(eroded_p.view(), eroded_t.view());
    }
    out[0] = both;
    out[1] = area_p + area_t - both;
    out[2] = area_p;
    out[3] = area_t;
    out[4] = band_both;
    out[5] = band_p + band_t - band_both;
  }
  return -1;
}

// Columns: areas of the eroded and of the dilated target, and the pixels of the prediction in each of them. The border of
// the image is no outline.
inline void count_bands(Codes predictions, Codes targets, Sizes sizes, const i64* bands_px, i64* out) {
  Runs p, t, eroded, dilated;
  Eroder eroder;
  Dilater dilater;
  for (i64 i = 0; i < sizes.n; ++i, out += 4) {
    const i64 height = sizes.heights[i], width = sizes.widths[i], size = height * width;
    predictions.decode_into(i, size, p);
    targets.decode_into(i, size, t);
    eroder.erode(t.view(), height, width, bands_px[i], true, eroded);
    dilater.dilate(t.view(), height, width, bands_px[i], eroder, dilated);
    out[0] = area(eroded.view());
    out[1] = area(dilated.view());
    out[2] = intersection(p.view(), eroded.view());
    out[3] = intersection(p.view(), dilated.view());
  }
}

// Objects of all images, and for each pair the positions others[others_at[i]] to others[others_at[i + 1]] of those that
// are not its target.
struct Objects {
  Codes codes;
  const i64* others;
  const i64* others_at;
};

// Where the wrong pixels of the predictions are; the columns are ERROR_COLUMNS.
class ErrorCounter {
 public:
  void count(Codes predictions, Codes targets, Objects objects, Sizes sizes, const i64* bands_px, i64* out) {
    for (i64 i = 0; i < sizes.n; ++i, out += 10) {
      const i64 height = sizes.heights[i], width = sizes.widths[i], size = height * width;
      predictions.decode_into(i, size, p_);
      targets.decode_into(i, size, t_);
      const View p = p_.view(), t = t_.view();
      const i64 area_p = area(p), area_t = area(t), both = intersection(p, t);

      // The band extends outwards by at most the half-width of the target and inwards by half of it; otherwise it would
      // cover all of a small object.
      const i64 half = half_width(t, height, width, 2 * bands_px[i], eroder_, eroded_);
      const i64 inwards = std::min(bands_px[i], std::max<i64>(1, (half + 1) / 2));
      const i64 outwards = std::min(bands_px[i], std::max<i64>(1, half));
      eroder_.erode(t, height, width, inwards, true, eroded_);
      dilater_.dilate(t, height, width, outwards, eroder_, dilated_);
      const i64 area_eroded = area(eroded_.view());
      const i64 in_eroded = intersection(p, eroded_.view());
      const i64 in_dilated = intersection(p, dilated_.view());
      out[0] = area_eroded;
      out[1] = area_eroded - in_eroded;
      out[2] = (area_t - area_eroded) - (both - in_eroded);
      out[3] = in_dilated - both;

      far_.room_for(p.n + dilated_.n);
      far_.n = subtract(p, dilated_.view(), far_.starts.data(), far_.ends.data());
      const Best best = look_under(p, area_p, objects, i, size);
      out[4] = area_p - in_dilated - best.elsewhere;
      out[5] = best.elsewhere;
      out[6] = best.both;
      out[7] = best.joint;
      out[8] = out[9] = 0;
      if (best.object >= 0) {
        objects.codes.decode_into(best.object, size, o_);
        rest_.room_for(o_.n + t.n);
        rest_.n = intersect(o_.view(), t, rest_.starts.data(), rest_.ends.data(), 0);
        const i64 overlap = area(rest_.view()), triple = intersection(rest_.view(), p);
        out[8] = best.both + both - triple;
        out[9] = area_p + area(o_.view()) + area_t - overlap - out[8];
      }
    }
  }

 private:
  // The object with the highest IoU with the prediction, -1 if it overlaps none; `elsewhere` is the part of the far
  // pixels that lies outside all objects.
  struct Best {
    i64 object = -1, both = 0, joint = 0, elsewhere = 0;
  };

  Best look_under(View p, i64 area_p, Objects objects, i64 pair, i64 size) {
    Best best;
    for (i64 k = objects.others_at[pair]; k < objects.others_at[pair + 1]; ++k) {
      objects.codes.decode_into(objects.others[k], size, o_);
      const i64 both = intersection(p, o_.view());
      if (both == 0) continue;
      const i64 joint = area_p + area(o_.view()) - both;
      if (best.object < 0 || both * best.joint > best.both * joint) {
        best.object = objects.others[k];
        best.both = both;
        best.joint = joint;
      }
      if (far_.n > 0) {
        rest_.room_for(far_.n + o_.n);
        rest_.n = subtract(far_.view(), o_.view(), rest_.starts.data(), rest_.ends.data());
        far_.room_for(rest_.n);
        std::copy_n(rest_.starts.data(), rest_.n, far_.starts.data());
        std::copy_n(rest_.ends.data(), rest_.n, far_.ends.data());
        far_.n = rest_.n;
      }
    }
    best.elsewhere = area(far_.view());
    return best;
  }

  Runs p_, t_, o_, eroded_, dilated_, far_, rest_;
  Eroder eroder_;
  Dilater dilater_;
};

// A box with both ends included; for no runs, an empty one whose union with another box is the other.
struct Box {
  i64 top, bottom, left, right;
};

inline Box box_of(View runs, i64 height, i64 width) {
  Box box{height, 0, width, 0};
  if (runs.n == 0) return box;
  box.left = runs.starts[0] / height;
  box.right = (runs.ends[runs.n - 1] - 1) / height;
  for (i64 j = 0; j < runs.n; ++j) {
    if (runs.starts[j] / height != (runs.ends[j] - 1) / height) {
      box.top = 0;
      box.bottom = height - 1;
      break;
    }
    box.top = std::min(box.top, runs.starts[j] % height);
    box.bottom = std::max(box.bottom, (runs.ends[j] - 1) % height);
  }
  return box;
}

// Outline pixels of pairs, and how many of them are within a disc around a pixel of the other outline. Columns: pixels of
// the prediction and of the target, matched pixels of the prediction and of the target.
// Source: davisvideochallenge/davis2017-evaluation metrics.py:f_measure (ac7c43f).
class OutlineCounter {
 public:
  void count(Codes predictions, Codes targets, Sizes sizes, const i64* radii_px, i64* out) {
    for (i64 i = 0; i < sizes.n; ++i, out += 4) {
      const i64 height = sizes.heights[i], width = sizes.widths[i], size = height * width;
      predictions.decode_into(i, size, p_);
      targets.decode_into(i, size, t_);
      std::fill_n(out, 4, 0);
      if (p_.n + t_.n == 0) continue;
      const Box a = box_of(p_.view(), height, width), b = box_of(t_.view(), height, width);
      // A row and a column more above and to the left, whose pixels may differ from the mask's.
      top_ = std::max<i64>(0, std::min(a.top, b.top) - 1);
      left_ = std::max<i64>(0, std::min(a.left, b.left) - 1);
      rows_ = std::max(a.bottom, b.bottom) - top_ + 1;
      columns_ = std::max(a.right, b.right) - left_ + 1;
      find_disc(radii_px[i]);
      outline(p_.view(), height, width, map_p_, edges_p_);
      outline(t_.view(), height, width, map_t_, edges_t_);
      out[0] = static_cast<i64>(edges_p_.size());
      out[1] = static_cast<i64>(edges_t_.size());
      out[2] = matched(edges_p_, map_t_);
      out[3] = matched(edges_t_, map_p_);
    }
  }

 private:
  struct Offset {
    i64 distance, down, right;
  };

  // The outline of davis2017 _seg2bmap: pixels that differ from their right, lower or diagonal neighbour. Pixels in the
  // last row of the image are compared only to the right, those in the last column only downwards, the last not at all.
  //
  // Pixels lie column after column, as the runs do. Around the outlines is a margin as wide as the disc, so that looking
  // for a match needs no check of borders. `edges` are the places of the outline's pixels.
  void outline(View runs, i64 height, i64 width, std::vector<u8>& map, std::vector<i64>& edges) {
    // Local, since bytes that are written might be any member for all that the compiler knows.
    const i64 rows = rows_, pitch = rows_ + 1, around = rows_ + 2 * radius_;
    inside_.assign(static_cast<std::size_t>((columns_ + 1) * pitch), 0);
    for (i64 r = 0; r < runs.n; ++r) {
      i64 position = runs.starts[r];
      i64 x = position / height;
      while (position < runs.ends[r]) {
        const i64 top = x * height, stop = std::min(runs.ends[r], top + height);
        u8* first = inside_.data() + (x - left_) * pitch + position - top - top_;
        std::memset(first, 1, static_cast<std::size_t>(stop - position));
        position = stop;
        ++x;
      }
    }
    map.assign(static_cast<std::size_t>((columns_ + 2 * radius_) * around), 0);
    edges.clear();
    const bool to_bottom = top_ + rows == height;
    for (i64 x = 0; x < columns_; ++x) {
      const u8* here = inside_.data() + x * pitch;
      const u8* right = here + pitch;
      u8* out = map.data() + (x + radius_) * around + radius_;
      if (left_ + x == width - 1) {
        compare_down(here, rows, out);
        if (to_bottom) out[rows - 1] = 0;
      } else {
        compare_around(here, right, rows, out);
        if (to_bottom) out[rows - 1] = here[rows - 1] ^ right[rows - 1];
      }
      add_edges(out, rows, (x + radius_) * around + radius_, edges);
    }
  }

  static void compare_down(const u8* __restrict here, i64 rows, u8* __restrict out) {
    for (i64 y = 0; y < rows; ++y) out[y] = here[y] ^ here[y + 1];
  }

  static void compare_around(const u8* __restrict here, const u8* __restrict right, i64 rows, u8* __restrict out) {
    for (i64 y = 0; y < rows; ++y) {
      out[y] = (here[y] ^ right[y]) | (here[y] ^ here[y + 1]) | (here[y] ^ right[y + 1]);
    }
  }

  // Add the places of the pixels of a column that are set; eight that are not are skipped at once.
  static void add_edges(const u8* column, i64 rows, i64 first, std::vector<i64>& edges) {
    i64 y = 0;
    for (; y + 8 <= rows; y += 8) {
      std::uint64_t eight;
      std::memcpy(&eight, column + y, 8);
      if (eight == 0) continue;
      for (i64 k = y; k < y + 8; ++k) {
        if (column[k] != 0) edges.push_back(first + k);
      }
    }
    for (; y < rows; ++y) {
      if (column[y] != 0) edges.push_back(first + y);
    }
  }

  // Offsets of the pixels of a disc, nearest first, since most outline pixels of a good mask match at one of the first.
  void find_disc(i64 radius) {
    if (radius == radius_) return;
    radius_ = radius;
    disc_.clear();
    for (i64 a = -radius; a <= radius; ++a) {
      for (i64 b = -radius; b <= radius; ++b) {
        if (a * a + b * b <= radius * radius) disc_.push_back({a * a + b * b, a, b});
      }
    }
    std::sort(disc_.begin(), disc_.end(), [](const Offset& x, const Offset& y) { return x.distance < y.distance; });
  }

  i64 matched(const std::vector<i64>& edges, const std::vector<u8>& by) {
    steps_.clear();
    for (const Offset& offset : disc_) steps_.push_back(offset.right * (rows_ + 2 * radius_) + offset.down);
    i64 count = 0;
    for (const i64 place : edges) {
      for (const i64 step : steps_) {
        if (by[static_cast<std::size_t>(place + step)] != 0) {
          ++count;
          break;
        }
      }
    }
    return count;
  }

  i64 top_ = 0, left_ = 0, rows_ = 0, columns_ = 0, radius_ = -1;
  Runs p_, t_;
  std::vector<u8> inside_, map_p_, map_t_;
  std::vector<i64> edges_p_, edges_t_, steps_;
  std::vector<Offset> disc_;
};

// 1 for a canonical code, 0 for a valid code in another form, and the error of an invalid one.
inline void check_codes(Codes codes, const i64* sizes, i64 n, std::int8_t* out) {
  Runs runs;
  Buffer<u8> again;
  for (i64 i = 0; i < n; ++i) {
    const i64 length = codes.at[i + 1] - codes.at[i];
    const i64 found = codes.decode_into(i, sizes[i], runs);
    if (found < 0) {
      out[i] = static_cast<std::int8_t>(found);
      continue;
    }
    u8* text = again.room_for(7 * (2 * found + 1));
    const i64 written = encode(runs.view(), sizes[i], text);
    out[i] = written == length && std::equal(text, text + written, codes.text + codes.at[i]);
  }
}

}  // namespace refbench
