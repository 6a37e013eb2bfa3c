use std::marker::PhantomData;

use bytes::Buf;
use prost::Message;
use tonic::Status;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};

/// Writes a request, and takes any answer for the empty one: some published handlers answer the end of a
/// stream with an object of another type, and the body of `EmptySuccess` says nothing in any case.
#[derive(Debug)]
pub(super) struct CallCodec<T>(PhantomData<T>);

impl<T> Default for CallCodec<T> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T: Message + 'static> Codec for CallCodec<T> {
    type Encode = T;
    type Decode = ();
    type Encoder = Self;
    type Decoder = AnyAnswer;

    fn encoder(&mut self) -> Self {
        Self::default()
    }

    fn decoder(&mut self) -> AnyAnswer {
        AnyAnswer
    }
}

impl<T: Message> Encoder for CallCodec<T> {
    type Item = T;
    type Error = Status;

    fn encode(&mut self, request: T, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        request.encode(buffer).map_err(|error| Status::internal(error.to_string()))
    }
}

/// Reads and forgets.
#[derive(Debug)]
pub(super) struct AnyAnswer;

impl Decoder for AnyAnswer {
    type Item = ();
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<()>, Status> {
        buffer.advance(buffer.remaining());
        Ok(Some(()))
    }
}
