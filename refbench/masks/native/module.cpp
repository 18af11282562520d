// The Python module refbench.masks._kernels. Most arguments are C-contiguous arrays, checked for the size of their items
// and for the length that they need; Python's lock is released while a function computes on them. It is held while lists
// of masks or polygons are read. The module uses the stable interface of Python, so one file serves all versions from
// 3.11 on.

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>

#include <cstring>
#include <exception>

#include "drawing.hpp"
#include "morphology.hpp"
#include "pairs.hpp"
#include "resizing.hpp"
#include "runs.hpp"

namespace {

using namespace refbench;

// Raised in C++ after an exception of Python was set.
struct PythonError {};

[[noreturn]] void fail(PyObject* kind, const char* text) {
  PyErr_SetString(kind, text);
  throw PythonError();
}

// An array that Python lends for the time of a call.
class Array {
 public:
  explicit Array(PyObject* object, bool writable = false) {
    const int flags = PyBUF_C_CONTIGUOUS | (writable ? PyBUF_WRITABLE : 0);
    if (PyObject_GetBuffer(object, &view_, flags) != 0) throw PythonError();
    if (view_.itemsize < 1) {
      PyBuffer_Release(&view_);
      fail(PyExc_TypeError, "an array has items without a size");
    }
  }
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;
  ~Array() { PyBuffer_Release(&view_); }

  template <class T>
  T* of(i64 least) const {
    if (view_.itemsize != static_cast<Py_ssize_t>(sizeof(T))) fail(PyExc_TypeError, "an array has items of another size");
    if (items() < least) fail(PyExc_ValueError, "an array is too short");
    return static_cast<T*>(view_.buf);
  }
  i64 items() const { return static_cast<i64>(view_.len / view_.itemsize); }
  i64 side(int axis) const {
    if (view_.ndim != 2) fail(PyExc_ValueError, "an array must have two axes");
    return static_cast<i64>(view_.shape[axis]);
  }

 private:
  Py_buffer view_;
};

// An array that is written to.
class Output : public Array {
 public:
  explicit Output(PyObject* object) : Array(object, true) {}
};

class Released {
 public:
  Released() : state_(PyEval_SaveThread()) {}
  Released(const Released&) = delete;
  Released& operator=(const Released&) = delete;
  ~Released() { PyEval_RestoreThread(state_); }

 private:
  PyThreadState* state_;
};

// A size, a number of things or a position: never negative, and small enough to be multiplied.
i64 number(PyObject* object) {
  const long long value = PyLong_AsLongLong(object);
  if (value == -1 && PyErr_Occurred() != nullptr) throw PythonError();
  if (value < 0 || value > (1LL << 48)) fail(PyExc_ValueError, "a number is negative or too large");
  return static_cast<i64>(value);
}

PyObject* integer(i64 value) { return PyLong_FromLongLong(value); }

PyObject* nothing() {
  Py_INCREF(Py_None);
  return Py_None;
}

PyObject* bytes_of(const std::vector<i64>& values) {
  return PyBytes_FromStringAndSize(reinterpret_cast<const char*>(values.data()),
                                   static_cast<Py_ssize_t>(values.size() * sizeof(i64)));
}

using Arguments = PyObject* const*;

// A function of the module, which may throw, as Python calls it.
template <PyObject* (*work)(Arguments), Py_ssize_t count>
PyObject* called(PyObject*, Arguments arguments, Py_ssize_t given) {
  try {
    if (given != count) fail(PyExc_TypeError, "wrong number of arguments");
    return work(arguments);
  } catch (const PythonError&) {
    return nullptr;
  } catch (const std::bad_alloc&) {
    return PyErr_NoMemory();
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
    return nullptr;
  }
}

template <PyObject* (*work)(Arguments), Py_ssize_t count>
PyMethodDef method(const char* name) {
  const auto function = reinterpret_cast<void (*)()>(&called<work, count>);
  return {name, reinterpret_cast<PyCFunction>(function), METH_FASTCALL, nullptr};
}

View runs_of(const Array& starts, const Array& ends, i64 n) { return {starts.of<i64>(n), ends.of<i64>(n), n}; }

// Codes of n masks; that they lie within the text is checked, since the positions come from Python.
Codes codes_of(const Array& text, const Array& at, i64 n) {
  const i64* positions = at.of<i64>(n + 1);
  bool inside = positions[0] >= 0 && positions[n] <= text.items();
  for (i64 i = 0; i < n; ++i) inside = inside && positions[i] <= positions[i + 1];
  if (!inside) fail(PyExc_ValueError, "the positions of codes are not sorted, or lie outside of the text");
  return {text.of<u8>(0), positions};
}

Sizes sizes_of(const Array& heights, const Array& widths) {
  const i64 n = heights.items();
  return {heights.of<i64>(n), widths.of<i64>(n), n};
}

// code, size, starts, ends
PyObject* decode_intervals(Arguments a) {
  const Array code(a[0]);
  const Output starts(a[2]), ends(a[3]);
  const i64 length = code.items(), size = number(a[1]);
  const u8* text = code.of<u8>(0);
  i64 *first = starts.of<i64>(length / 2 + 1), *last = ends.of<i64>(length / 2 + 1);
  return integer(decode(text, length, size, first, last));
}

// starts, ends, n, size, out
PyObject* encode_intervals(Arguments a) {
  const Array starts(a[0]), ends(a[1]);
  const Output out(a[4]);
  const i64 n = number(a[2]);
  return integer(encode(runs_of(starts, ends, n), number(a[3]), out.of<u8>(7 * (2 * n + 1))));
}

// pixels, apart
PyObject* changes_of_array(Arguments a) {
  const Array pixels(a[0]);
  const i64 height = pixels.side(0), width = pixels.side(1);
  const bool apart = number(a[1]) != 0;
  if (height < 1 || width < 1) fail(PyExc_ValueError, "an array has no pixels");
  const u8* first = pixels.of<u8>(height * width);
  std::vector<i64> changes;
  {
    Released released;
    changes = array_changes(first, height, width, apart);
  }
  return bytes_of(changes);
}

// corners, the number of corners of each polygon, height, width
PyObject* code_of_polygons(Arguments a) {
  const Array corners(a[0]), counts(a[1]);
  const i64 height = number(a[2]), width = number(a[3]), polygons = counts.items();
  const i64* corner_counts = counts.of<i64>(0);
  i64 all = 0;
  for (i64 k = 0; k < polygons; ++k) {
    if (corner_counts[k] < 1) fail(PyExc_ValueError, "a polygon has no corners");
    if (corner_counts[k] > corners.items() / 2 - all) fail(PyExc_ValueError, "an array is too short");
    all += corner_counts[k];
  }
  const double* next = corners.of<double>(2 * all);
  Buffer<u8> text;
  i64 length;
  {
    Released released;
    Runs sum, more;
    for (i64 k = 0; k < polygons; ++k) {
      std::vector<i64> starts, ends;
      polygon(next, corner_counts[k], height, width, starts, ends);
      next += 2 * corner_counts[k];
      const View part{starts.data(), ends.data(), static_cast<i64>(starts.size())};
      more.room_for(sum.n + part.n);
      more.n = unite(sum.view(), part, more.starts.data(), more.ends.data());
      sum.room_for(more.n);
      std::copy_n(more.starts.data(), more.n, sum.starts.data());
      std::copy_n(more.ends.data(), more.n, sum.ends.data());
      sum.n = more.n;
    }
    length = encode(sum.view(), height * width, text.room_for(7 * (2 * sum.n + 1)));
  }
  return PyBytes_FromStringAndSize(reinterpret_cast<const char*>(text.data()), static_cast<Py_ssize_t>(length));
}

// code, size
PyObject* area_of_code(Arguments a) {
  const Array code(a[0]);
  Runs runs;
  decode(code.of<u8>(0), code.items(), number(a[1]), runs);
  return integer(area(runs.view()));
}

// starts, ends, n, starts, ends, n, out_starts, out_ends
PyObject* subtract_intervals(Arguments a) {
  const Array starts_a(a[0]), ends_a(a[1]), starts_b(a[3]), ends_b(a[4]);
  const Output starts(a[6]), ends(a[7]);
  const i64 n_a = number(a[2]), n_b = number(a[5]);
  return integer(subtract(runs_of(starts_a, ends_a, n_a), runs_of(starts_b, ends_b, n_b), starts.of<i64>(n_a + n_b),
                          ends.of<i64>(n_a + n_b)));
}

// codes, at, sizes, out
PyObject* check_many(Arguments a) {
  const Array text(a[0]), at(a[1]), sizes(a[2]);
  const Output out(a[3]);
  const i64 n = sizes.items();
  const Codes codes = codes_of(text, at, n);
  const i64* pixels = sizes.of<i64>(n);
  auto* states = out.of<std::int8_t>(n);
  {
    Released released;
    check_codes(codes, pixels, n, states);
  }
  return nothing();
}

// The arguments that all functions about pairs begin with, and the two they end with: the codes of predictions and
// targets, ..., heights, widths, a size in pixels for each pair, and the counts.
class Pairs {
 public:
  Pairs(Arguments a, Arguments last, i64 columns)
      : text_p_(a[0]), at_p_(a[1]), text_t_(a[2]), at_t_(a[3]), heights_(last[0]), widths_(last[1]), px_(last[2]),
        out_(last[3]), sizes(sizes_of(heights_, widths_)), predictions(codes_of(text_p_, at_p_, sizes.n)),
        targets(codes_of(text_t_, at_t_, sizes.n)), px(px_.of<i64>(sizes.n)), out(out_.of<i64>(sizes.n * columns)) {}

 private:
  Array text_p_, at_p_, text_t_, at_t_, heights_, widths_, px_;
  Output out_;

 public:
  Sizes sizes;
  Codes predictions, targets;
  const i64* px;
  i64* out;
};

PyObject* pairs_counted(Arguments a) {
  const Pairs pairs(a, a + 4, 6);
  i64 bad;
  {
    Released released;
    bad = count_pairs(pairs.predictions, pairs.targets, pairs.sizes, pairs.px, pairs.out);
  }
  return integer(bad);
}

PyObject* bands_counted(Arguments a) {
  const Pairs pairs(a, a + 4, 4);
  {
    Released released;
    count_bands(pairs.predictions, pairs.targets, pairs.sizes, pairs.px, pairs.out);
  }
  return nothing();
}

PyObject* outlines_counted(Arguments a) {
  const Pairs pairs(a, a + 4, 4);
  {
    Released released;
    OutlineCounter().count(pairs.predictions, pairs.targets, pairs.sizes, pairs.px, pairs.out);
  }
  return nothing();
}

// ..., objects, their positions, others, their positions, ...
PyObject* errors_counted(Arguments a) {
  const Pairs pairs(a, a + 8, 10);
  const Array text(a[4]), at(a[5]), others(a[6]), others_at(a[7]);
  if (at.items() < 1) fail(PyExc_ValueError, "an array is too short");
  const i64 count = at.items() - 1;
  const Objects objects{codes_of(text, at, count), others.of<i64>(0), others_at.of<i64>(pairs.sizes.n + 1)};
  bool inside = objects.others_at[0] >= 0 && objects.others_at[pairs.sizes.n] <= others.items();
  for (i64 i = 0; i < pairs.sizes.n; ++i) inside = inside && objects.others_at[i] <= objects.others_at[i + 1];
  for (i64 k = 0; inside && k < others.items(); ++k) inside = objects.others[k] >= 0 && objects.others[k] < count;
  if (!inside) fail(PyExc_ValueError, "an object does not exist");
  {
    Released released;
    ErrorCounter().count(pairs.predictions, pairs.targets, objects, pairs.sizes, pairs.px, pairs.out);
  }
  return nothing();
}

// codes, at, heights, widths, columns, their positions, first rows, their positions, new heights, new widths
PyObject* codes_resized(Arguments a) {
  const Array text(a[0]), at(a[1]), heights(a[2]), widths(a[3]);
  const Array columns(a[4]), columns_at(a[5]), first_rows(a[6]), first_rows_at(a[7]), new_heights(a[8]), new_widths(a[9]);
  const Sizes sizes = sizes_of(heights, widths);
  const Codes codes = codes_of(text, at, sizes.n);
  const Sampling to{columns.of<i64>(0), columns_at.of<i64>(sizes.n), first_rows.of<i64>(0), first_rows_at.of<i64>(sizes.n),
                    new_heights.of<i64>(sizes.n), new_widths.of<i64>(sizes.n)};
  for (i64 i = 0; i < sizes.n; ++i) {
    const bool inside = to.columns_at[i] >= 0 && to.columns_at[i] + to.widths[i] <= columns.items() &&
                        to.first_rows_at[i] >= 0 && to.first_rows_at[i] + sizes.heights[i] + 1 <= first_rows.items();
    if (!inside) fail(PyExc_ValueError, "the columns or rows of a mask lie outside of their list");
  }
  std::vector<u8> resized;
  std::vector<i64> positions;
  {
    Released released;
    resize_codes(codes, sizes, to, resized, positions);
  }
  return Py_BuildValue("NN",
                       PyBytes_FromStringAndSize(reinterpret_cast<const char*>(resized.data()),
                                                 static_cast<Py_ssize_t>(resized.size())),
                       bytes_of(positions));
}

// A reference to a Python object, released at the end of its scope.
class Owned {
 public:
  explicit Owned(PyObject* object) : object_(object) {}
  Owned(const Owned&) = delete;
  Owned& operator=(const Owned&) = delete;
  ~Owned() { Py_XDECREF(object_); }
  PyObject* get() const { return object_; }

 private:
  PyObject* object_;
};

// The codes of masks one after the other, and what else is known of them.
class MaskReader {
 public:
  // Add a mask of the type `kind`, which has height, width and counts, or a COCO dict. Returns whether it has one of the
  // usual forms. It is held here: reading an attribute or a key may run Python code that
  // would free it.
  bool add(PyObject* mask, PyObject* kind) {
    Py_INCREF(mask);
    const Owned held(mask);
    if (reinterpret_cast<PyObject*>(Py_TYPE(mask)) == kind) {
      const Owned height(attribute(mask, height_)), width(attribute(mask, width_)), counts(attribute(mask, counts_));
      return add_side(height.get(), heights) && add_side(width.get(), widths) && add_code(counts.get());
    }
    if (!PyDict_CheckExact(mask)) return false;
    const Owned held_size(item(mask, size_)), held_counts(item(mask, counts_));
    PyObject *size = held_size.get(), *counts = held_counts.get();
    if (size == nullptr || counts == nullptr) return false;
    if (PyList_CheckExact(size) && PyList_Size(size) == 2) {
      return add_side(PyList_GetItem(size, 0), heights) && add_side(PyList_GetItem(size, 1), widths) && add_code(counts);
    }
    if (PyTuple_CheckExact(size) && PyTuple_Size(size) == 2) {
      return add_side(PyTuple_GetItem(size, 0), heights) && add_side(PyTuple_GetItem(size, 1), widths) && add_code(counts);
    }
    return false;
  }

  Buffer<u8> text;
  std::vector<i64> at{0}, heights, widths;

 private:
  static PyObject* attribute(PyObject* object, const Owned& name) {
    PyObject* found = PyObject_GetAttr(object, name.get());
    if (found == nullptr) throw PythonError();
    return found;
  }

  // A new reference, or nullptr if there is no such key.
  static PyObject* item(PyObject* dict, const Owned& key) {
    PyObject* found = PyDict_GetItemWithError(dict, key.get());
    if (found == nullptr && PyErr_Occurred() != nullptr) throw PythonError();
    Py_XINCREF(found);
    return found;
  }

  static bool add_side(PyObject* side, std::vector<i64>& sides) {
    if (!PyLong_CheckExact(side)) return false;
    int overflow = 0;
    const long long value = PyLong_AsLongLongAndOverflow(side, &overflow);
    if (overflow != 0 || value < 1 || value >= (1LL << 31)) return false;
    sides.push_back(static_cast<i64>(value));
    return true;
  }

  bool add_code(PyObject* code) {
    Py_ssize_t length = 0;
    const char* first = nullptr;
    if (PyBytes_CheckExact(code)) {
      length = PyBytes_Size(code);
      first = PyBytes_AsString(code);
    } else if (PyUnicode_CheckExact(code)) {
      first = PyUnicode_AsUTF8AndSize(code, &length);
      if (first == nullptr) {
        // Half of a surrogate pair.
        PyErr_Clear();
        return false;
      }
    } else {
      return false;
    }
    std::memcpy(text.room_for(at.back() + length + 1) + at.back(), first, static_cast<std::size_t>(length));
    at.push_back(at.back() + length);
    return true;
  }

  const Owned height_{PyUnicode_InternFromString("height")}, width_{PyUnicode_InternFromString("width")},
      counts_{PyUnicode_InternFromString("counts")}, size_{PyUnicode_InternFromString("size")};
};

// masks, the type of a mask
PyObject* masks_read(Arguments a) {
  if (!PyList_Check(a[0])) fail(PyExc_TypeError, "masks must be a list");
  MaskReader reader;
  // The length is asked again for every mask: Python code that an attribute runs may change the list.
  for (Py_ssize_t k = 0; k < PyList_Size(a[0]); ++k) {
    if (!reader.add(PyList_GetItem(a[0], k), a[1])) return nothing();
  }
  return Py_BuildValue("NNNN",
                       PyBytes_FromStringAndSize(reinterpret_cast<const char*>(reader.text.room_for(1)),
                                                 static_cast<Py_ssize_t>(reader.at.back())),
                       bytes_of(reader.at), bytes_of(reader.heights), bytes_of(reader.widths));
}

// Append the vertices of a polygon, a flat list or tuple of numbers. Returns whether it has at least three points, no
// coordinate beyond ±`most`, and an outline that cannot be longer than `most`.
bool add_polygon(PyObject* polygon, double most, std::vector<double>& corners) {
  const bool list = PyList_CheckExact(polygon);
  if (!list && !PyTuple_CheckExact(polygon)) return false;
  const Py_ssize_t values = list ? PyList_Size(polygon) : PyTuple_Size(polygon);
  if (values < 6 || values % 2 != 0) return false;
  double low = most, high = -most;
  for (Py_ssize_t k = 0; k < values; ++k) {
    PyObject* value = list ? PyList_GetItem(polygon, k) : PyTuple_GetItem(polygon, k);
    if (!PyFloat_CheckExact(value) && !PyLong_CheckExact(value)) return false;
    const double number = PyFloat_CheckExact(value) ? PyFloat_AsDouble(value) : PyLong_AsDouble(value);
    if (number == -1.0 && PyErr_Occurred() != nullptr) {
      // An integer that is no float.
      PyErr_Clear();
      return false;
    }
    // Neither holds for NaN.
    if (!(number >= -most && number <= most)) return false;
    low = std::min(low, number);
    high = std::max(high, number);
    corners.push_back(number);
  }
  return (high - low) * static_cast<double>(values / 2) <= most;
}

// polygons, the longest outline
PyObject* polygons_read(Arguments a) {
  const double most = PyFloat_AsDouble(a[1]);
  if (most == -1.0 && PyErr_Occurred() != nullptr) throw PythonError();
  if (!PyList_Check(a[0])) fail(PyExc_TypeError, "polygons must be a list");
  std::vector<double> corners;
  std::vector<i64> counts;
  for (Py_ssize_t k = 0; k < PyList_Size(a[0]); ++k) {
    const std::size_t before = corners.size();
    if (!add_polygon(PyList_GetItem(a[0], k), most, corners)) return nothing();
    counts.push_back(static_cast<i64>((corners.size() - before) / 2));
  }
  return Py_BuildValue("NN",
                       PyBytes_FromStringAndSize(reinterpret_cast<const char*>(corners.data()),
                                                 static_cast<Py_ssize_t>(corners.size() * sizeof(double))),
                       bytes_of(counts));
}

PyMethodDef methods[] = {
    method<decode_intervals, 4>("decode_intervals"),
    method<encode_intervals, 5>("encode_intervals"),
    method<changes_of_array, 2>("array_changes"),
    method<code_of_polygons, 4>("code_of_polygons"),
    method<polygons_read, 2>("read_polygons"),
    method<area_of_code, 2>("area_of_code"),
    method<subtract_intervals, 8>("subtract_intervals"),
    method<check_many, 4>("check_codes"),
    method<masks_read, 2>("read_masks"),
    method<codes_resized, 10>("resize_codes"),
    method<pairs_counted, 8>("count_pairs"),
    method<bands_counted, 8>("count_bands"),
    method<outlines_counted, 8>("count_outlines"),
    method<errors_counted, 12>("count_errors"),
    {nullptr, nullptr, 0, nullptr},
};

// Increase it with every change of a function: refbench.masks.kernels refuses a compiled module with another number.
constexpr long INTERFACE = 5;

int add_interface(PyObject* module) { return PyModule_AddIntConstant(module, "INTERFACE", INTERFACE); }

PyModuleDef_Slot slots[] = {{Py_mod_exec, reinterpret_cast<void*>(&add_interface)}, {0, nullptr}};

PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_kernels", "Compiled kernels on run-length codes.", 0, methods, slots, nullptr, nullptr, nullptr,
};

}  // namespace

PyMODINIT_FUNC PyInit__kernels() { return PyModuleDef_Init(&definition); }
