//! NBD clients that ask for strange things, and for more than there is: each is answered, the next request is understood, and the
//! server does not grow.
//!
//! | client                      | where              | what                                                                  |
//! |-----------------------------|--------------------|-----------------------------------------------------------------------|
//! | libnbd, its checks off      | `loopback`         | ranges that are none, options twice, two connections to one disk      |
//! | sockets                     | a farm of its own  | 20 GiB, to both ends; reads that nobody takes; its memory in `/proc`  |

use std::io::{Read, Seek, SeekFrom, Write};
use std::net::TcpStream;

use gateway::content::disk::{Base, Mode};
use gateway::namespace::Exposure;
use nbd::client::{NbdClient, handshake};
use tests::bench::{Bench, need_programs};

use crate::disks::{FARM, ONE, connect, disk_address, job};
use crate::farms::WHARF;
use crate::loopback::{Loopback, pattern};

/// Runs a script for libnbd's Python module, which finds the address of the export `disk` of 20 GiB in `url`; what it prints.
fn libnbd(script: &str) -> String {
    need_programs(&[("/usr/lib/python3/dist-packages/nbd.py", "python3-libnbd")]);
    let server = Loopback::start();
    server.put_disk("disk", Base::Zeros { size_bytes: 20 << 30 }, Mode::CopyOnWrite, Exposure::default());
    let script = format!("import nbd\nurl = '{}'\n{script}", server.nbd_url("disk"));
    let output = server.command("/usr/bin/python3").args(["-c", &script]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_range_that_is_none_is_refused_and_the_next_request_is_understood() {
    // STRICT_MODE 0: libnbd sends what it would refuse itself.
    let said = libnbd(
        r"
h = nbd.NBD()
h.set_strict_mode(0)
h.add_meta_context('base:allocation')
h.connect_uri(url)
h.pwrite(b'still here', 4093)
end, big = h.get_size(), 0xffffffff
def ask(what, request):
    try:
        request()
        answer = 'done'
    except nbd.Error as error:
        answer = error.errno
    print(what, answer, h.pread(10, 4093).decode())
extent = lambda *_: 0
ask('read past the end', lambda: h.pread(513, end - 512))
ask('read far past the end', lambda: h.pread(512, 1 << 62))
ask('read nothing', lambda: h.pread(0, 0))
ask('read more than 32 MiB', lambda: h.pread(33 << 20, 0))
ask('write past the end', lambda: h.pwrite(bytes(513), end - 512))
ask('write nothing', lambda: h.pwrite(b'', 0))
ask('write more than 32 MiB', lambda: h.pwrite(bytes(33 << 20), 0))
ask('write with a flag of another command', lambda: h.pwrite(bytes(512), 0, nbd.CMD_FLAG_REQ_ONE))
ask('write an odd number of bytes', lambda: h.pwrite(b'odd', 4103, nbd.CMD_FLAG_FUA))
ask('zero 4 GiB past the end', lambda: h.zero(big, end - 512))
ask('zero 4 GiB', lambda: h.zero(big, 1 << 30))
ask('trim 4 GiB', lambda: h.trim(big, 1 << 30))
ask('trim nothing', lambda: h.trim(0, 0))
ask('cache 4 GiB', lambda: h.cache(big, 1 << 30))
ask('map 4 GiB', lambda: h.block_status(big, 1 << 30, extent))
ask('map nothing', lambda: h.block_status(0, 0, extent))
asked = [h.aio_pread(nbd.Buffer(512), end - 512 + index % 2) for index in range(200)]
while h.aio_in_flight():
    h.poll(-1)
def came(cookie):
    try:
        return h.aio_command_completed(cookie)
    except nbd.Error:
        return False
print([came(cookie) for cookie in asked].count(True), 'of 200 at once')
h.shutdown()
",
    );
    let expected = "\
read past the end EINVAL still here
read far past the end EINVAL still here
read nothing EINVAL still here
read more than 32 MiB EINVAL still here
write past the end ENOSPC still here
write nothing EINVAL still here
write more than 32 MiB EINVAL still here
write with a flag of another command EINVAL still here
write an odd number of bytes done still here
zero 4 GiB past the end ENOSPC still here
zero 4 GiB done still here
trim 4 GiB done still here
trim nothing EINVAL still here
cache 4 GiB done still here
map 4 GiB done still here
map nothing EINVAL still here
100 of 200 at once
";
    assert_eq!(said, expected);
}

#[test]
fn options_may_come_twice_in_any_order_and_old_clients_choose_by_name() {
    let said = libnbd(
        r"
h = nbd.NBD()
h.set_opt_mode(True)
h.connect_uri(url)
h.opt_list(lambda name, words: print('listed', name))
for name in ['none', 'disk', 'none', 'd' * 4097, 'disk']:
    try:
        h.set_export_name(name)
        h.opt_info()
        print('info', name, h.get_size())
    except nbd.Error as error:
        print('info', name[:4], len(name), error.errno)
h.set_export_name('none')
try:
    h.opt_go()
except nbd.Error as error:
    print('go none', error.errno)
h.set_export_name('disk')
h.opt_go()
print('go disk', h.get_size(), h.pread(3, 5))
h.shutdown()
for flags in [nbd.HANDSHAKE_FLAG_FIXED_NEWSTYLE, 0, nbd.HANDSHAKE_FLAG_NO_ZEROES]:
    h = nbd.NBD()
    h.set_request_structured_replies(False)
    h.set_handshake_flags(flags)
    h.connect_uri(url)
    print(h.get_protocol(), h.get_size(), h.pread(3, 5))
    h.shutdown()
",
    );
    let expected = "\
listed disk
info none 4 ENOENT
info disk 21474836480
info none 4 ENOENT
info dddd 4097 ENAMETOOLONG
info disk 21474836480
go none ENOENT
go disk 21474836480 bytearray(b'\\x00\\x00\\x00')
newstyle-fixed 21474836480 bytearray(b'\\x00\\x00\\x00')
newstyle 21474836480 bytearray(b'\\x00\\x00\\x00')
newstyle 21474836480 bytearray(b'\\x00\\x00\\x00')
";
    assert_eq!(said, expected);
}

#[test]
fn what_one_connection_flushed_or_wrote_through_another_reads_and_keeps() {
    let said = libnbd(
        r"
first, second = nbd.NBD(), nbd.NBD()
first.connect_uri(url)
second.connect_uri(url)
print(first.can_multi_conn(), second.can_multi_conn())
first.pwrite(b'flushed', 0)
first.flush()
print(second.pread(7, 0).decode())
second.pwrite(b'through', 1 << 34, nbd.CMD_FLAG_FUA)
print(first.pread(7, 1 << 34).decode())
second.trim(4096, 1 << 34)
second.flush()
print(first.pread(3, 1 << 34), first.pread(7, 0).decode())
first.shutdown()
print(second.pread(7, 0).decode())
second.shutdown()
",
    );
    assert_eq!(said, "True True\nflushed\nthrough\nbytearray(b'\\x00\\x00\\x00') flushed\nflushed\n");
}

const MIB: u64 = 1 << 20;

#[test]
fn twenty_gigabytes_are_written_and_read_at_both_ends_and_the_server_stays_small() {
    let bench = Bench::start(WHARF, FARM);
    let mut running = bench.submit(&job("one", "        - {name: scratch, size: 20G}\n"), "");
    let address = disk_address(&bench, &mut running);
    let mut stream = connect(ONE, address);
    let export = handshake(&mut stream, b"scratch").unwrap();
    assert_eq!(export.size, 20 << 30);
    let before = bench.memory_bytes_max();
    // 2 MiB each: the first and the last of the disk, across 4 GiB, and in steps that are no multiple of a block.
    let last = export.size - 2 * MIB;
    let places: Vec<_> = (0..62).map(|step| step * (last / 62)).chain([(4 << 30) - MIB - 1, last]).collect();
    let bytes = pattern(4 * MIB as usize);
    let sample = |place: u64| &bytes[(place % (2 * MIB)) as usize..][..2 * MIB as usize];
    let mut disk = NbdClient::new(&mut stream, &export);
    for place in &places {
        disk.seek(SeekFrom::Start(*place)).unwrap();
        disk.write_all(sample(*place)).unwrap();
    }
    let mut read = vec![0; 2 * MIB as usize];
    for place in &places {
        disk.seek(SeekFrom::Start(*place)).unwrap();
        disk.read_exact(&mut read).unwrap();
        assert!(read == sample(*place), "2 MiB at {place}");
    }
    // 256 MiB were moved. In flight are 32 MiB at most, and as much of a next write; 16 MiB are pooled for reads, as much is for chance.
    let grown = bench.memory_bytes_max() - before;
    assert!(grown < 96 * MIB, "the server grew by {grown} bytes");
    running.cancel();
    running.wait().expect("INCOMPLETE", "cancelled");
}

/// A request with simple replies.
fn request(command: u16, length: u64) -> Vec<u8> {
    let fields = [&0_u16.to_be_bytes()[..], &command.to_be_bytes(), &[0; 8], &[0; 8], &(length as u32).to_be_bytes()];
    [b"\x25\x60\x95\x13", &fields.concat()[..]].concat()
}

#[test]
fn a_client_that_asks_for_gigabytes_and_takes_none_makes_the_server_hold_what_is_allowed_and_no_more() {
    const CONNECTIONS: u64 = 6;
    let bench = Bench::start(WHARF, FARM);
    let mut running = bench.submit(&job("one", "        - {name: scratch, size: 64M, max_connections: 16}\n"), "");
    let address = disk_address(&bench, &mut running);
    let attach = || {
        let mut stream = connect(ONE, address);
        handshake(&mut stream, b"scratch").unwrap();
        stream
    };
    let mut polite = attach();
    polite.write_all(&[request(1, 32 * MIB), pattern(32 * MIB as usize)].concat()).unwrap();
    polite.read_exact(&mut [0; 16]).unwrap();
    let before = bench.memory_bytes_max();
    let ask = |what: &[u8]| -> Vec<TcpStream> {
        let streams = (0..CONNECTIONS).map(|_| attach());
        streams
            .map(|mut stream| {
                // With the first answer the server has seen what came with its question.
                stream.write_all(what).unwrap();
                stream.read_exact(&mut [0; 16]).unwrap();
                stream
            })
            .collect()
    };
    let silent = ask(&[request(3, 0), request(1, 32 * MIB)].concat());
    let grown = bench.memory_bytes_max() - before;
    assert!(grown < 16 * MIB, "{grown} bytes for the heads of {CONNECTIONS} writes of 32 MiB that never come");
    drop(silent);
    // 128 reads of 32 MiB: 4 GiB, on each.
    let mut deaf = ask(&request(0, 32 * MIB).repeat(128));
    for _ in 0..100 {
        polite.write_all(&request(0, MIB)).unwrap();
        polite.read_exact(&mut vec![0; 16 + MIB as usize]).unwrap();
    }
    // 32 MiB in answers each; the pool of 16 MiB, and 48 MiB for chance and the polite one.
    let grown = bench.memory_bytes_max() - before;
    assert!(grown < (CONNECTIONS * 32 + 64) * MIB, "the server grew by {grown} bytes");
    let mut answers = vec![0; 48 * MIB as usize];
    deaf[0].read_exact(&mut answers).unwrap();
    assert!(answers[..32 * MIB as usize] == pattern(32 * MIB as usize), "who listens after all is answered");
    running.cancel();
    running.wait().expect("INCOMPLETE", "cancelled");
}
