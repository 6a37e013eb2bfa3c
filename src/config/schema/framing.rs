//! `[listeners.NAME.framing]`, of each kind.

use std::time::Duration;

use crate::config::schema::{Section, Shape};
use crate::config::value::{Choice, DefaultTo, Key, Required, Size, Span};
use crate::framing::{Deliver, FRAME_BYTES_MAX};

/// The kinds of framing there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::config) enum Kind {
    Length,
    Delimiter,
    Fixed,
    Line,
    Escape,
    Gap,
}

pub(in crate::config) static SECTION: Section = Section {
    key: "framing",
    title: "[listeners.NAME.framing]",
    about: "How the stream of a device is cut into frames; the handler gets one whole frame with each event. Without it, an \
            event has whatever a read gives, cut anywhere. `max` and all other bounds are in bytes on the wire, with all that \
            belongs to a frame; a longer frame ends the connection as `framing_broken`, where nothing else is said. What is \
            in no frame is counted. A handler that cuts its stream itself goes on working with `deliver = \"wire\"`.",
    shape: Shape::Once,
    entries: &[&KIND],
};

pub(in crate::config) static KIND: Key<Choice<Kind>, Required> = Key {
    name: "kind",
    form: Choice(&[
        ("length", Kind::Length),
        ("delimiter", Kind::Delimiter),
        ("fixed", Kind::Fixed),
        ("line", Kind::Line),
        ("escape", Kind::Escape),
        ("gap", Kind::Gap),
    ]),
    presence: Required,
    about: "how frames are told apart",
};

/// The form of a bound; what is shorter than the shortest frame is found where the other keys are known.
pub(in crate::config) const MAX_FORM: Size = Size(1..=FRAME_BYTES_MAX as u64);

pub(in crate::config) static MAX: Key<Size, DefaultTo<usize>> =
    Key { name: "max", form: MAX_FORM, presence: DefaultTo(|| 64 << 10), about: "the longest frame" };

const DELIVER_FORM: Choice<Deliver> = Choice(&[("wire", Deliver::Wire), ("payload", Deliver::Payload)]);

pub(in crate::config) mod length {
    use super::{DELIVER_FORM, Deliver, FRAME_BYTES_MAX, KIND, MAX};
    use crate::config::schema::{Section, Shape};
    use crate::config::value::{Choice, Count, DefaultTo, Integer, Key, Required, WidthForm};
    use crate::framing::Order;

    pub(in crate::config) static SECTION: Section = Section {
        key: "framing",
        title: "[listeners.NAME.framing] of kind \"length\"",
        about: "Frames that say how long they are. On the wire, a frame has `offset + width + VALUE + adjust` bytes, where VALUE \
                is what its length says. So `adjust` is what VALUE leaves out of all that follows it: `{ kind = \"length\", \
                offset = 2, width = 1, adjust = 2 }` for `78 78 0d ..` with a body of 13 bytes and `0d 0a` behind it, 18 bytes. \
                Where VALUE counts the whole frame, `adjust` is `-(offset + width)`.",
        shape: Shape::Once,
        entries: &[&KIND, &OFFSET, &WIDTH, &ORDER, &ADJUST, &MAX, &DELIVER],
    };

    pub(in crate::config) static OFFSET: Key<Count, DefaultTo<u32>> =
        Key { name: "offset", form: Count(0..=65_535), presence: DefaultTo(|| 0), about: "bytes before the length" };

    pub(in crate::config) static WIDTH: Key<WidthForm, Required> =
        Key { name: "width", form: WidthForm, presence: Required, about: "bytes of the length" };

    pub(in crate::config) static ORDER: Key<Choice<Order>, DefaultTo<Order>> = Key {
        name: "order",
        form: Choice(&[("big", Order::Big), ("little", Order::Little)]),
        presence: DefaultTo(|| Order::Big),
        about: "which byte of the length comes first: the most significant one, or the least",
    };

    pub(in crate::config) static ADJUST: Key<Integer, DefaultTo<i32>> = Key {
        name: "adjust",
        form: Integer(-(FRAME_BYTES_MAX as i32)..=FRAME_BYTES_MAX as i32),
        presence: DefaultTo(|| 0),
        about: "bytes behind the length that it does not count; less than 0 where it counts more than these",
    };

    pub(in crate::config) static DELIVER: Key<Choice<Deliver>, DefaultTo<Deliver>> = Key {
        name: "deliver",
        form: DELIVER_FORM,
        presence: DefaultTo(|| Deliver::Wire),
        about: "what the handler gets: `wire`: the frame as it came; `payload`: what follows the length",
    };
}

pub(in crate::config) mod delimiter {
    use super::{DELIVER_FORM, Deliver, KIND, MAX};
    use crate::config::schema::{Section, Shape};
    use crate::config::value::{Choice, DefaultTo, DelimiterForm, Key, Required};

    pub(in crate::config) static SECTION: Section = Section {
        key: "framing",
        title: "[listeners.NAME.framing] of kind \"delimiter\"",
        about: "Frames that end with certain bytes, which stand nowhere else.",
        shape: Shape::Once,
        entries: &[&KIND, &DELIMITER, &MAX, &DELIVER],
    };

    pub(in crate::config) static DELIMITER: Key<DelimiterForm, Required> = Key {
        name: "delimiter",
        form: DelimiterForm,
        presence: Required,
        about: "the bytes, as ASCII text; in single quotes `\\r`, `\\n`, `\\t`, `\\\\` and `\\xHH` may stand in it, as in `'\\x03\\r\\n'`",
    };

    pub(in crate::config) static DELIVER: Key<Choice<Deliver>, DefaultTo<Deliver>> = Key {
        name: "deliver",
        form: DELIVER_FORM,
        presence: DefaultTo(|| Deliver::Payload),
        about: "what the handler gets: `wire`: the frame as it came; `payload`: the same without the delimiter",
    };
}

pub(in crate::config) mod fixed {
    use super::{KIND, MAX_FORM};
    use crate::config::schema::{Section, Shape};
    use crate::config::value::{Key, Required, Size};

    pub(in crate::config) static SECTION: Section = Section {
        key: "framing",
        title: "[listeners.NAME.framing] of kind \"fixed\"",
        about: "Frames that all have one length.",
        shape: Shape::Once,
        entries: &[&KIND, &SIZE],
    };

    pub(in crate::config) static SIZE: Key<Size, Required> =
        Key { name: "size", form: MAX_FORM, presence: Required, about: "that length" };
}

pub(in crate::config) mod line {
    use super::{DELIVER_FORM, Deliver, KIND, MAX};
    use crate::config::schema::{Section, Shape};
    use crate::config::value::{Choice, DefaultTo, Key};

    pub(in crate::config) static SECTION: Section = Section {
        key: "framing",
        title: "[listeners.NAME.framing] of kind \"line\"",
        about: "Lines of text, which end with LF or CR LF.",
        shape: Shape::Once,
        entries: &[&KIND, &MAX, &DELIVER],
    };

    pub(in crate::config) static DELIVER: Key<Choice<Deliver>, DefaultTo<Deliver>> = Key {
        name: "deliver",
        form: DELIVER_FORM,
        presence: DefaultTo(|| Deliver::Payload),
        about: "what the handler gets: `wire`: the line as it came; `payload`: the same without its end",
    };
}

pub(in crate::config) mod escape {
    use super::{DELIVER_FORM, Deliver, KIND, MAX};
    use crate::config::schema::{Section, Shape};
    use crate::config::value::{Choice, DefaultTo, Key, Required};
    use crate::framing::Escapes;

    pub(in crate::config) static SECTION: Section = Section {
        key: "framing",
        title: "[listeners.NAME.framing] of kind \"escape\"",
        about: "Frames between flags of 7E, in which 7D escapes what may not stand there. A flag may end one frame and start the \
                next. What is before the first flag, and what is longer than `max` between two, is skipped; the \
                connection goes on.",
        shape: Shape::Once,
        entries: &[&KIND, &SCHEME, &MAX, &DELIVER],
    };

    pub(in crate::config) static SCHEME: Key<Choice<Escapes>, Required> = Key {
        name: "scheme",
        form: Choice(&[("jt808", Escapes::Jt808), ("hdlc", Escapes::Hdlc)]),
        presence: Required,
        about: "what an escape stands for: `jt808`: 7D 02 is 7E and 7D 01 is 7D, as in JT/T 808; `hdlc`: the byte behind 7D has its \
                bit 20 inverted, as in HDLC and PPP",
    };

    pub(in crate::config) static DELIVER: Key<Choice<Deliver>, DefaultTo<Deliver>> = Key {
        name: "deliver",
        form: DELIVER_FORM,
        presence: DefaultTo(|| Deliver::Payload),
        about: "what the handler gets: `wire`: the frame as it came, with both flags; `payload`: what is between them, with the \
                escapes undone; a frame with an escape that stands for nothing is skipped then",
    };
}

pub(in crate::config) mod gap {
    use super::{Duration, KIND, MAX_FORM, Span};
    use crate::config::schema::{Section, Shape};
    use crate::config::value::{DefaultTo, Key, Required, Size};

    pub(in crate::config) static SECTION: Section = Section {
        key: "framing",
        title: "[listeners.NAME.framing] of kind \"gap\"",
        about: "Frames with silence between them, as those of Modbus RTU behind a serial device server. It is the silence of the \
                gateway's reads: frames that the network has brought together stay together, so a device should wait for an \
                answer before it sends the next. What is longer than `max` is skipped up to the next silence; the connection \
                goes on.",
        shape: Shape::Once,
        entries: &[&KIND, &SILENCE, &MAX],
    };

    pub(in crate::config) static SILENCE: Key<Span, Required> = Key {
        name: "silence",
        form: Span(Duration::from_millis(1)..=Duration::from_secs(60)),
        presence: Required,
        about: "how long nothing may come before a frame is taken as finished; longer than the network's own pauses",
    };

    pub(in crate::config) static MAX: Key<Size, DefaultTo<usize>> =
        Key { name: "max", form: MAX_FORM, presence: DefaultTo(|| 256), about: "the longest frame" };
}
