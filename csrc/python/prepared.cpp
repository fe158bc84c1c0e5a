// The short way from a public function to its kernel. What selection and preparation depend on (sizes, strides, dtypes,
// threads, settings) makes a key; a dictionary in Python has the call prepared for it. In Python, looking at the arguments
// costs several times the kernel of a small input: here it is 0.3 µs a tensor. Whatever is not an ordinary tensor in
// ordinary circumstances is left to the long way, through PyTorch's dispatcher.
#include "python/tensors.h"

#include <nanobind/ndarray.h>

#include <algorithm>
#include <functional>
#include <new>
#include <numeric>
#include <vector>

#include "convscan.h"

namespace nb = nanobind;

namespace convscan::python {
namespace {

// The head of DLPack's table of functions for tensors as Python objects, of which PyTorch has one since 2.10: sizes,
// strides and address are read in some 60 ns, without making a Python object of each.
struct ExchangeTable {
  uint32_t major, minor;
  void *older;
  void *allocate, *export_owned, *import_owned;
  int (*describe)(void *tensor, nb::dlpack::dltensor *description);
};

// What is needed of PyTorch, handed over once by _library.py and kept until the process ends.
struct {
  PyTypeObject *tensor = nullptr, *parameter = nullptr;
  PyObject *watchers = nullptr;  // functions, true while something watches every operator
  PyObject *is_neg = nullptr, *is_conj = nullptr, *is_grad_enabled = nullptr;
  PyObject *forward_ad = nullptr;  // the module
  PyObject *settings = nullptr;    // the context variable of force() and workspace_limit()
  const ExchangeTable *exchange = nullptr;
} torch;

struct {
  PyObject *requires_grad = PyUnicode_InternFromString("requires_grad");
  PyObject *current_level = PyUnicode_InternFromString("_current_level");
} names;

nb::object Checked(PyObject *object) {
  if (object == nullptr) nb::raise_python_error();
  return nb::steal(object);
}

bool Truth(const nb::object &object) {
  const int truth = PyObject_IsTrue(object.ptr());
  if (truth < 0) nb::raise_python_error();
  return truth != 0;
}

bool Ask(PyObject *question, PyObject *tensor) { return Truth(Checked(PyObject_CallOneArg(question, tensor))); }

// Tensors in the order of the call; None where an optional one is not given.
struct Tensors {
  PyObject *const *items;
  size_t count;
};
constexpr size_t kMostTensors = 13;

// What kernels and selection know of a tensor. Sizes and strides are those of PyTorch where it has the table.
struct Array {
  static constexpr int kMostAxes = 16;
  uintptr_t address = 0;
  int64_t dtype = -1, axes = 0;
  bool is_complex = false;
  const int64_t *sizes = nullptr, *strides = nullptr;
  int64_t own[2 * kMostAxes];

  int64_t count() const { return std::accumulate(sizes, sizes + axes, int64_t{1}, std::multiplies<>()); }
};

bool DescribeByTable(nb::handle tensor, Array &array) {
  nb::dlpack::dltensor t;
  if (torch.exchange->describe(tensor.ptr(), &t) != 0) {
    PyErr_Clear();
    return false;
  }
  array.address = reinterpret_cast<uintptr_t>(t.data) + t.byte_offset;
  array.dtype = t.dtype.lanes << 16 | t.dtype.code << 8 | t.dtype.bits;
  array.is_complex = t.dtype.code == static_cast<uint8_t>(nb::dlpack::dtype_code::Complex);
  array.axes = t.ndim;
  array.sizes = t.shape;
  array.strides = t.strides;
  return t.device.device_type == nb::device::cpu::value;
}

bool DescribeByAttributes(nb::handle tensor, Array &array) try {
  const nb::tuple shape(tensor.attr("shape")), strides(tensor.attr("stride")());
  if (shape.size() > Array::kMostAxes) return false;
  array.address = nb::cast<uintptr_t>(tensor.attr("data_ptr")());
  const nb::object dtype = tensor.attr("dtype");
  array.dtype = reinterpret_cast<intptr_t>(dtype.ptr());  // each is one object for ever
  array.is_complex = nb::cast<bool>(dtype.attr("is_complex"));
  array.axes = static_cast<int64_t>(shape.size());
  array.sizes = array.own;
  array.strides = array.own + shape.size();
  int64_t *word = array.own;
  for (const nb::handle size : shape) *word++ = nb::cast<int64_t>(size);
  for (const nb::handle stride : strides) *word++ = nb::cast<int64_t>(stride);
  return nb::cast<bool>(tensor.attr("is_cpu"));
} catch (const std::exception &) {  // Python's errors, and casts that fail
  return false;
}

// False for what is no array on the CPU.
bool Describe(nb::handle tensor, Array &array) {
  if (tensor.is_none()) return true;
  return torch.exchange != nullptr ? DescribeByTable(tensor, array) : DescribeByAttributes(tensor, array);
}

// Whether nothing watches the call (no tracing, transform, mode, forward-mode level or gradient) and every tensor is an
// ordinary one whose memory has its values: PyTorch may have put off a conjugation, a negation, or zeros. Describes them.
bool IsPlain(const Tensors &tensors, Array *arrays) {
  const bool records = Truth(Checked(PyObject_CallNoArgs(torch.is_grad_enabled)));
  for (size_t i = 0; i < tensors.count; ++i) {
    PyObject *const tensor = tensors.items[i];
    if (tensor == Py_None) continue;
    if (Py_TYPE(tensor) != torch.tensor && Py_TYPE(tensor) != torch.parameter) return false;
    if (!Describe(tensor, arrays[i]) || (arrays[i].address == 0 && arrays[i].count() != 0)) return false;
    if (Ask(torch.is_neg, tensor) || (arrays[i].is_complex && Ask(torch.is_conj, tensor))) return false;
    if (records && Truth(Checked(PyObject_GetAttr(tensor, names.requires_grad)))) return false;
  }
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(torch.watchers); ++i)
    if (Truth(Checked(PyObject_CallNoArgs(PyTuple_GET_ITEM(torch.watchers, i))))) return false;
  return PyLong_AsLong(Checked(PyObject_GetAttr(torch.forward_ad, names.current_level)).ptr()) < 0;
}

// One number that changes whenever a prepared choice may: the threads in use and the instruction set.
int64_t Configuration() {
  const char *isa = convscan_isa();
  int index = 0;
  while (convscan_isa_name(index) != nullptr && convscan_isa_name(index) != isa) ++index;
  return int64_t{8} * convscan_thread_count() + index;
}

// All that a prepared call depends on: (bytes, variant, settings).
nb::object CallKey(nb::handle variant, const Array *arrays, size_t count) {
  int64_t words[1 + kMostTensors * (2 + 2 * Array::kMostAxes)], *word = words;
  *word++ = Configuration();
  for (const Array *array = arrays; array != arrays + count; ++array) {
    if (array->axes > Array::kMostAxes) return nb::none();
    *word++ = array->axes;
    *word++ = array->dtype;
    word = std::copy(array->sizes, array->sizes + array->axes, word);
    word = std::copy(array->strides, array->strides + array->axes, word);
  }
  const nb::object bytes = Checked(PyBytes_FromStringAndSize(reinterpret_cast<const char *>(words), 8 * (word - words)));
  PyObject *settings = nullptr;
  if (PyContextVar_Get(torch.settings, nullptr, &settings) != 0) nb::raise_python_error();
  return Checked(PyTuple_Pack(3, bytes.ptr(), variant.ptr(), nb::steal(settings).ptr()));
}

nb::object RunPrepared(const nb::handle calls, const nb::handle variant, const Tensors &tensors) {
  Array arrays[kMostTensors];
  if (!IsPlain(tensors, arrays)) return nb::none();
  const nb::object key = CallKey(variant, arrays, tensors.count);
  // Held, for another thread may empty the dictionary meanwhile.
  const nb::object call = nb::borrow(PyDict_GetItemWithError(calls.ptr(), key.ptr()));
  if (!call.is_valid()) {
    PyErr_Clear();  // a variant without a hash is no variant: the long way says so
    return nb::none();
  }
  PyObject *const run = PyTuple_GET_ITEM(call.ptr(), 0), *const make = PyTuple_GET_ITEM(call.ptr(), 1);
  const size_t last = tensors.count - 1;
  nb::object out = nb::borrow(tensors.items[last]);
  if (out.is_none()) {
    out = Checked(PyObject_CallOneArg(make, tensors.items[0]));
    arrays[last].address = TensorAddress(out);
  }
  if (const NativeCall *native = nullptr; nb::try_cast(nb::handle(run), native)) {
    uintptr_t addresses[kMostTensors];
    std::transform(arrays, arrays + tensors.count, addresses, [](const Array &array) { return array.address; });
    native->RunOn(addresses);
  } else {
    PyObject *operands[kMostTensors];
    std::copy(tensors.items, tensors.items + last, operands);
    operands[last] = out.ptr();
    Checked(PyObject_Vectorcall(run, operands, tensors.count, nullptr));
  }
  return out;
}

// RunPrepared as Python calls it, by itself: nanobind would make a tuple of the tensors first.
PyObject *RunPreparedFromPython(PyObject *, PyObject *const *args, Py_ssize_t count) try {
  if (count < 4 || count > 2 + static_cast<Py_ssize_t>(kMostTensors) || !PyDict_Check(args[0]))
    throw nb::type_error("run_prepared: expected (calls, variant, *inputs, out)");
  return RunPrepared(args[0], args[1], {args + 2, static_cast<size_t>(count - 2)}).release().ptr();
} catch (nb::python_error &error) {
  error.restore();
  return nullptr;
} catch (const nb::builtin_exception &error) {
  PyErr_SetString(error.type() == nb::exception_type::type_error ? PyExc_TypeError : PyExc_ValueError, error.what());
  return nullptr;
} catch (const std::bad_alloc &) {
  return PyErr_NoMemory();
}

Tensors Items(const nb::args &tensors) { return {&PyTuple_GET_ITEM(tensors.ptr(), 0), tensors.size()}; }

void UseTorch(nb::type_object tensor, nb::type_object parameter, nb::tuple watchers, nb::object is_grad_enabled,
              nb::object forward_ad, nb::object settings, nb::object exchange) {
  torch.is_neg = nb::object(tensor.attr("is_neg")).release().ptr();
  torch.is_conj = nb::object(tensor.attr("is_conj")).release().ptr();
  torch.tensor = reinterpret_cast<PyTypeObject *>(tensor.release().ptr());
  torch.parameter = reinterpret_cast<PyTypeObject *>(parameter.release().ptr());
  torch.watchers = watchers.release().ptr();
  torch.is_grad_enabled = is_grad_enabled.release().ptr();
  torch.forward_ad = forward_ad.release().ptr();
  torch.settings = settings.release().ptr();
  constexpr const char *kName = "dlpack_exchange_api";
  torch.exchange = nullptr;
  if (PyCapsule_IsValid(exchange.ptr(), kName)) {
    const auto *const table = static_cast<const ExchangeTable *>(PyCapsule_GetPointer(exchange.ptr(), kName));
    if (table->major == nb::dlpack::major_version && table->describe != nullptr) torch.exchange = table;
  }
}

}  // namespace

uintptr_t TensorAddress(nb::handle tensor) {
  Array array;
  if (!Describe(tensor, array)) throw nb::type_error("expected tensors with memory on the CPU");
  return array.address;
}

void DefinePreparedCalls(nb::module_ &m) {
  using namespace nb::literals;
  m.def("use_torch", &UseTorch, "tensor"_a, "parameter"_a, "watchers"_a, "is_grad_enabled"_a, "forward_ad"_a,
        "settings"_a, "exchange"_a.none());
  m.def("configuration", &Configuration);
  nb::class_<NativeCall>(m, "NativeCall", "A kernel with everything of a problem but its addresses.");
  m.def("is_plain", [](nb::args tensors) {
    std::vector<Array> arrays(tensors.size());
    return IsPlain(Items(tensors), arrays.data());
  });
  m.def(
      "call_key",
      [](nb::handle variant, nb::args tensors) {
        Array arrays[kMostTensors];
        const Tensors items = Items(tensors);
        if (items.count > kMostTensors) throw nb::type_error("call_key: too many tensors");
        for (size_t i = 0; i < items.count; ++i)
          if (!Describe(items.items[i], arrays[i])) return nb::object(nb::none());
        return CallKey(variant, arrays, items.count);
      },
      "variant"_a.none(), "tensors"_a);
  static PyMethodDef run_prepared = {"run_prepared", reinterpret_cast<PyCFunction>(RunPreparedFromPython), METH_FASTCALL, nullptr};
  m.attr("run_prepared") = Checked(PyCFunction_New(&run_prepared, nullptr));
}

}  // namespace convscan::python
