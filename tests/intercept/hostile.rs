//! Programs that lie.

use regen::service::intercept::Network;

use crate::free::free_port;
use crate::instance::{Instance, script};

#[test]
fn strange_arguments_get_the_kernels_own_answer() {
    let port = free_port("127.0.0.1");
    let body = "import ctypes, select\n\
        libc = ctypes.CDLL(None, use_errno=True)\n\
        def call(number, *arguments):\n\
        \x20   r = libc.syscall(number, *[ctypes.c_long(a) for a in arguments])\n\
        \x20   return errno.errorcode[ctypes.get_errno()] if r else 'fine'\n\
        bind, listen = 49, 50\n\
        s = socket.socket()\n\
        fd = s.fileno()\n\
        buffer = ctypes.create_string_buffer(b'\\2' + bytes(199))\n\
        place = ctypes.addressof(buffer)\n\
        got = [call(bind, fd, place, n) for n in (0, 1, 2, 15, 129, -1, 1 << 31)]\n\
        assert got == ['EINVAL'] * 7, got\n\
        assert call(bind, fd, 1, 16) == 'EFAULT'\n\
        assert call(bind, fd, 0, 16) == 'EFAULT'\n\
        assert call(bind, fd, -1, 128) == 'EFAULT'\n\
        assert call(bind, 999, place, 16) == 'EBADF'\n\
        assert call(bind, -1, place, 16) == 'EBADF'\n\
        assert call(bind, 0, place, 16) == 'ENOTSOCK'\n\
        assert call(listen, 999, 5) == 'EBADF'\n\
        assert call(listen, 0, 5) == 'ENOTSOCK'\n\
        n = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)\n\
        n.bind((0, 0))\n\
        p = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)\n\
        p.bind(('lo', 0))\n\
        r = socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)\n\
        r.bind(('127.0.0.1', 0))\n\
        u = socket.socket(socket.AF_UNIX)\n\
        assert call(bind, u.fileno(), place, 2) == 'EINVAL'\n";
    let declared = [&*format!("tcp://127.0.0.1:{port}"), "unix:/nowhere/x"];
    let mut instance = Instance::start(script(body), &declared, Network::Shared);
    assert_eq!(instance.answer_until_it_ends(), 0);
    assert_eq!(instance.notes, Vec::<String>::new());
}

#[test]
fn an_address_that_changes_while_it_is_judged_never_gets_the_rights_of_the_declared_one() {
    let (port, other) = (free_port("127.0.0.1"), free_port("127.0.0.1"));
    let body = format!(
        "import ctypes, struct\n\
         libc = ctypes.CDLL(None, use_errno=True)\n\
         def address(port): return struct.pack('=HH4s8x', 2, socket.htons(port), bytes([127, 0, 0, 1]))\n\
         good, bad = address({port}), address({other})\n\
         buffer = ctypes.create_string_buffer(good, 16)\n\
         stop = False\n\
         def flip():\n\
         \x20   while not stop:\n\
         \x20       ctypes.memmove(buffer, bad, 16)\n\
         \x20       ctypes.memmove(buffer, good, 16)\n\
         flipper = threading.Thread(target=flip)\n\
         flipper.start()\n\
         for i in range(300):\n\
         \x20   s = socket.socket()\n\
         \x20   s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)\n\
         \x20   if libc.bind(s.fileno(), buffer, 16) == 0:\n\
         \x20       shared = s.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT)\n\
         \x20       where = s.getsockname()[1]\n\
         \x20       if shared and where != {port}: print('shared', where); os._exit(3)\n\
         \x20   s.close()\n\
         stop = True\n"
    );
    let declared = [&*format!("tcp://127.0.0.1:{port}")];
    let mut instance = Instance::start(script(&body), &declared, Network::Shared);
    assert_eq!(instance.answer_until_it_ends(), 0);
}
