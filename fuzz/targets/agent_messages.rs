//! What an agent may say to the supervisor: a frame that decodes is encoded again to the same message.
#![no_main]

use brig_protocol::{
    agent::{FROM_AGENT_BYTES, FromAgent},
    frame,
    stream::{HEADER_BYTES, StreamHeader},
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(message) = frame::read::<FromAgent>(&mut &bytes[..], FROM_AGENT_BYTES) {
        let again = frame::encode(&message, FROM_AGENT_BYTES * 2).expect("what was decoded can be encoded");
        let decoded: FromAgent =
            frame::decode(&again[frame::PREFIX_BYTES..]).expect("what was encoded can be decoded");
        assert_eq!(decoded, message);
    }
    if let Some(header) = bytes
        .first_chunk::<HEADER_BYTES>()
        .and_then(|bytes| StreamHeader::decode(*bytes))
    {
        assert_eq!(StreamHeader::decode(header.encode()), Some(header));
    }
});
