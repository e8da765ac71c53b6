//! What an agent may say to the supervisor: a frame that decodes is encoded again to the same message, and the supervisor's reader
//! sees in a stream of frames what is there, up to the first that is damaged.
#![no_main]

use std::{
    pin::pin,
    task::{Context, Poll, Waker},
};

use brig_engine::frames::FrameReader;
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
    let mut rest = bytes;
    let mut reader = FrameReader::<_, FromAgent>::new(bytes, FROM_AGENT_BYTES);
    loop {
        let expected = frame::read::<FromAgent>(&mut rest, FROM_AGENT_BYTES);
        // A reader of memory never has to wait.
        let read = pin!(reader.next()).poll(&mut Context::from_waker(Waker::noop()));
        match (expected, read) {
            (Ok(expected), Poll::Ready(Ok(message))) => assert_eq!(message, expected),
            (Err(_), Poll::Ready(Err(_))) => break,
            (expected, read) => panic!("{expected:?}, but {read:?}"),
        }
    }
    if let Some(header) = bytes
        .first_chunk::<HEADER_BYTES>()
        .and_then(|bytes| StreamHeader::decode(*bytes))
    {
        assert_eq!(StreamHeader::decode(header.encode()), Some(header));
    }
});
