"""Files of PyTorch put together instruction by instruction: a small assembler of pickles, and the two containers.

Each function of the assembler returns the instructions that leave one value on the stack. The programs are those of the
zip container, in which a storage is named by five values; `write_legacy` gives the sixth.
"""

import pickle
import struct
import zipfile

import numpy as np

VALUES = np.arange(6, dtype="<f4")
PROTO = b"\x80\x02"
FALSE, NONE, EMPTY_TUPLE, EMPTY_LIST, EMPTY_DICT = b"\x89", b"N", b")", b"]", b"}"
MAGIC = 0x1950A86A20F9469CFC6C
SYSTEM = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}


def text(value):
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def number(value):
    size = value.bit_length() // 8 + 1
    return b"\x8a" + bytes([size]) + value.to_bytes(size, "little", signed=True)


def group(*items):
    return b"(" + b"".join(items) + b"t"


def symbol(name):
    module, _, attribute = name.rpartition(".")
    return f"c{module}\n{attribute}\n".encode()


def call(name, *arguments):
    return symbol(name) + group(*arguments) + b"R"


def items(**values):
    return b"(" + b"".join(text(name) + value for name, value in values.items()) + b"u"


ORDERED_DICT = call("collections.OrderedDict")


def storage(kind="torch.FloatStorage", key="0", count=6):
    return group(text("storage"), symbol(kind), text(key), text("cpu"), number(count)) + b"Q"


def tensor(source=None, offset=0, shape=(2, 3), strides=(3, 1), extra=(FALSE, ORDERED_DICT)):
    shape, strides = (group(*map(number, values)) for values in (shape, strides))
    return call("torch._utils._rebuild_tensor_v2", source or storage(), number(offset), shape, strides, *extra)


def state_dict(**values):
    return PROTO + ORDERED_DICT + items(**values) + b"."


def write_zip(path, program, records=None, **options):
    """A checkpoint around a pickle; records override or, with None, remove the usual ones."""
    content = {"data.pkl": program, "byteorder": b"little", "data/0": VALUES.tobytes(), "version": b"3\n"}
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, data in {**content, **(records or {})}.items():
            if data is not None:
                archive.writestr(f"archive/{name}", data)


def legacy_program(program):
    """The same program for the legacy container, where None follows the number of elements."""
    return program.replace(b"tQ", b"NtQ")


def legacy_bytes(program, *, magic=MAGIC, version=1001, system=None, keys=("0",), storages=None):
    """A legacy checkpoint around a pickle for the zip container."""
    head = [pickle.dumps(value, 2) for value in (magic, version, SYSTEM if system is None else system)]
    data = struct.pack("<q", 6) + VALUES.tobytes() if storages is None else storages
    return b"".join([*head, legacy_program(program), pickle.dumps(list(keys), 2), data])


def write_legacy(path, program, **parts):
    path.write_bytes(legacy_bytes(program, **parts))
