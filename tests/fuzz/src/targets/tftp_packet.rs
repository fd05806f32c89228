//! TFTP's codec: any datagram is a packet or a sentence, and what is written from what was read is read the same again.

use gateway::tftp::packet::{NAME_BYTES_MAX, Packet, RequestOption, decode, encode_option_ack, encode_read, tidy_name};

use crate::corpus;

pub(super) fn run(datagram: &[u8]) {
    match decode(datagram) {
        Ok(Packet::Read(request) | Packet::Write(request)) => {
            assert!(request.name.starts_with('/') && !request.name.contains("//") && !request.name.contains('\\'));
            assert!(request.name.len() <= NAME_BYTES_MAX + 1 && !request.name.contains(char::is_control));
            assert_eq!(tidy_name(&request.name), request.name, "a tidy name stays");
            check_options(&request.options);
            let mut again = Vec::new();
            encode_read(&mut again, &request.name, request.mode, &request.options);
            // The slash that was put before the name may be the byte too many.
            if request.name.len() <= NAME_BYTES_MAX {
                assert_eq!(decode(&again), Ok(Packet::Read(request)));
            }
        }
        Ok(Packet::OptionAck(options)) => {
            check_options(&options);
            let mut again = Vec::new();
            encode_option_ack(&mut again, &options);
            assert_eq!(decode(&again), Ok(Packet::OptionAck(options)));
        }
        Ok(Packet::Data { payload, .. }) => assert_eq!(payload.len(), datagram.len() - 4),
        Ok(Packet::Ack { block }) => assert_eq!(block.to_be_bytes(), datagram[2..4]),
        Ok(Packet::Error { text, .. }) => assert!(text.chars().count() <= 200 && !text.contains(char::is_control)),
        Err(malformed) => {
            let sentence = malformed.to_string();
            assert!(sentence.len() <= 200 && !sentence.contains(char::is_control), "{sentence}");
        }
    }
}

fn check_options(options: &[RequestOption]) {
    assert!(options.len() <= 16 && options.iter().all(|option| !option.name.is_empty()));
    assert!(options.iter().all(|option| !option.name.contains('\0') && !option.value.contains('\0')));
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = requests();
    seeds.extend([
        b"\0\x02upload\0octet\0tsize\09\0".to_vec(),
        b"\0\x03\0\x01payload".to_vec(),
        b"\0\x04\xff\xff".to_vec(),
        b"\0\x05\0\x08User aborted the transfer\0".to_vec(),
        b"\0\x06tsize\x007\0blksize\x001468\0".to_vec(),
        b"\0\x01boot\\\\x\0NetAscii\0TIMEOUT\x005\0windowsize\x0016\0\0\0".to_vec(),
    ]);
    seeds.extend(corpus(include_str!("../../corpus/tftp_packet.hex")));
    seeds
}

/// What real firmware asked for (fixtures/packets/tftp): the port it came from, a blank, the datagram.
pub(super) fn requests() -> Vec<Vec<u8>> {
    let files = [
        include_str!("../../../../fixtures/packets/tftp/edk2-x64.hex"),
        include_str!("../../../../fixtures/packets/tftp/grub-arm64.hex"),
        include_str!("../../../../fixtures/packets/tftp/ipxe-bios.hex"),
        include_str!("../../../../fixtures/packets/tftp/u-boot-arm64.hex"),
    ];
    let lines = files.iter().flat_map(|text| text.lines()).filter(|line| !line.starts_with('#'));
    lines.filter_map(|line| line.split_once(' ')).map(|(_, digits)| crate::unhex(digits.trim())).collect()
}
