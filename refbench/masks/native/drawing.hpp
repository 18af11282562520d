// Runs of pixels, of arrays and of polygons.

#pragma once

#include <cmath>
#include <cstring>
#include <vector>

#include "runs.hpp"

namespace refbench {

// pycocotools draws polygons on a grid that is this many times as fine as the pixels.
constexpr i64 GRID = 5;
constexpr double FINE = 5.0;

inline std::uint64_t word_at(const u8* bytes) {
  std::uint64_t word;
  std::memcpy(&word, bytes, 8);
  return word;
}

// The highest bit of each byte that is not zero.
inline std::uint64_t foreground(std::uint64_t word) {
  constexpr std::uint64_t LOW = 0x7F7F7F7F7F7F7F7FULL;
  return (((word & LOW) + LOW) | word) & ~LOW;
}

// Positions, in column-major order, at which a mask of bytes (height, width), row after row, changes between background
// and foreground, which is any byte but zero; the pixel before the first is background. If `apart`, every column ends in
// background.
//
// The rows are compared 32 bytes at a time, since most are equal; then the changes are sorted by their columns.
inline std::vector<i64> array_changes(const u8* pixels, i64 height, i64 width, bool apart) {
  std::vector<i64> at(static_cast<std::size_t>(width) + 1, 0);
  std::vector<i64> rows, columns;
  const u8* bottom = pixels + (height - 1) * width;
  const auto starts = [&](i64 j) { return (pixels[j] != 0) != (!apart && j > 0 && bottom[j - 1] != 0); };
  const auto add = [&](i64 i, i64 j) {
    rows.push_back(i);
    columns.push_back(j);
    ++at[j + 1];
  };
  for (i64 i = 1; i < height; ++i) {
    const u8* here = pixels + i * width;
    const u8* above = here - width;
    i64 j = 0;
    for (; j + 32 <= width; j += 32) {
      std::uint64_t any = 0;
      for (i64 k = j; k < j + 32; k += 8) any |= word_at(here + k) ^ word_at(above + k);
      if (any == 0) continue;
      for (i64 k = j; k < j + 32; k += 8) {
        const std::uint64_t different = foreground(word_at(here + k)) ^ foreground(word_at(above + k));
        if (different == 0) continue;
        u8 parts[8];
        std::memcpy(parts, &different, 8);
        for (i64 byte = 0; byte < 8; ++byte) {
          if (parts[byte] != 0) add(i, k + byte);
        }
      }
    }
    for (; j < width; ++j) {
      if ((here[j] != 0) != (above[j] != 0)) add(i, j);
    }
  }
  for (i64 j = 0; j < width; ++j) at[j + 1] += at[j] + starts(j) + (apart && bottom[j] != 0);
  std::vector<i64> changes(static_cast<std::size_t>(at[width]));
  for (i64 j = 0; j < width; ++j) {
    if (apart && bottom[j] != 0) changes[at[j + 1] - 1] = (j + 1) * height;
    if (starts(j)) changes[at[j]++] = j * height;
  }
  // Rows come in their order, so each column is sorted.
  for (std::size_t k = 0; k < rows.size(); ++k) changes[at[columns[k]]++] = columns[k] * height + rows[k];
  return changes;
}

inline i64 fine(double coordinate) { return static_cast<i64>(FINE * coordinate + 0.5); }

// The pixels of a polygon with `count` vertices x, y in pixels. They are those of pycocotools on a processor that rounds
// every product and sum: this file must be compiled without fused multiplication and addition.
//
// Source: cocoapi common/maskApi.c, rleFrPoly: the outline is drawn on a finer grid. Where it crosses the middle of a
// pixel column, the pixels below the crossing switch between foreground and background.
inline void polygon(const double* corners, i64 count, i64 height, i64 width, std::vector<i64>& starts,
                    std::vector<i64>& ends) {
  std::size_t points = 0;
  for (i64 j = 0; j < count; ++j) {
    const i64 after = (j + 1) % count;
    points += static_cast<std::size_t>(std::max(std::abs(fine(corners[2 * after]) - fine(corners[2 * j])),
                                                std::abs(fine(corners[2 * after + 1]) - fine(corners[2 * j + 1]))) + 1);
  }
  std::vector<i64> u, v;
  u.reserve(points);
  v.reserve(points);
  for (i64 j = 0; j < count; ++j) {
    const i64 after = (j + 1) % count;
    i64 xs = fine(corners[2 * j]), ys = fine(corners[2 * j + 1]);
    i64 xe = fine(corners[2 * after]), ye = fine(corners[2 * after + 1]);
    const i64 dx = std::abs(xe - xs), dy = std::abs(ye - ys);
    const bool flip = (dx >= dy && xs > xe) || (dx < dy && ys > ye);
    if (flip) {
      std::swap(xs, xe);
      std::swap(ys, ye);
    }
    if (dx >= dy) {
      const double slope = dx > 0 ? static_cast<double>(ye - ys) / static_cast<double>(dx) : 0.0;
      for (i64 d = 0; d <= dx; ++d) {
        const i64 t = flip ? dx - d : d;
        const double along = slope * static_cast<double>(t);
        u.push_back(t + xs);
        v.push_back(static_cast<i64>(static_cast<double>(ys) + along + 0.5));
      }
    } else {
      const double slope = static_cast<double>(xe - xs) / static_cast<double>(dy);
      for (i64 d = 0; d <= dy; ++d) {
        const i64 t = flip ? dy - d : d;
        const double along = slope * static_cast<double>(t);
        v.push_back(t + ys);
        u.push_back(static_cast<i64>(static_cast<double>(xs) + along + 0.5));
      }
    }
  }
  std::vector<i64> changes;
  for (std::size_t j = 1; j < u.size(); ++j) {
    if (u[j] == u[j - 1]) continue;
    const i64 left = u[j] < u[j - 1] ? u[j] : u[j] - 1;
    // (left + 0.5) / FINE - 0.5 is the middle of a column only for these, without any rounding.
    if (left < 0 || left % GRID != GRID / 2) continue;
    const i64 column = left / GRID;
    if (column > width - 1) continue;
    double row = (static_cast<double>(std::min(v[j], v[j - 1])) + 0.5) / FINE - 0.5;
    row = std::ceil(std::min(std::max(row, 0.0), static_cast<double>(height)));
    changes.push_back(column * height + static_cast<i64>(row));
  }
  std::sort(changes.begin(), changes.end());
  bool inside = false;
  for (std::size_t j = 0; j < changes.size(); ++j) {
    // Two changes at the same position cancel out.
    if (j + 1 < changes.size() && changes[j] == changes[j + 1]) {
      ++j;
      continue;
    }
    (inside ? ends : starts).push_back(changes[j]);
    inside = !inside;
  }
  if (inside) {
    if (starts.back() < height * width) {
      ends.push_back(height * width);
    } else {
      starts.pop_back();
    }
  }
}

}  // namespace refbench
