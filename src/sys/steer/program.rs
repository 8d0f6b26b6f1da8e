//! The program that chooses among sockets (eBPF, type `BPF_PROG_TYPE_SK_REUSEPORT`).
//!
//! It gets a packet and a hash of its addresses. A probe, which comes from one port of the address that it goes to, is
//! given to a socket of the candidate; everything else to one of the serving sockets, as long as there is one. When connections move from a
//! listener that closes, the program may run without a packet: its fields are then zero, which is no probe.

use super::Probe;
use crate::sys::bpf::Instruction;

/// `BPF_RET | BPF_K` of classic BPF.
pub(super) const CLASSIC_RETURN: u16 = 0x06;

// linux/bpf.h: class, operation and source of an instruction in one byte.
const LOAD_HALF: u8 = 0x69;
const LOAD_WORD: u8 = 0x61;
const LOAD_DOUBLE: u8 = 0x79;
const LOAD_IMMEDIATE: u8 = 0x18;
const STORE_WORD: u8 = 0x63;
const MOVE: u8 = 0xb7;
const MOVE_REGISTER: u8 = 0xbf;
const ADD: u8 = 0x07;
const REMAINDER: u8 = 0x97;
const JUMP: u8 = 0x05;
const JUMP_EQUAL: u8 = 0x15;
const JUMP_NOT_EQUAL: u8 = 0x55;
const JUMP_NOT_EQUAL_REGISTER: u8 = 0x5d;
const SUBTRACT: u8 = 0x17;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;

/// The immediate of [`LOAD_IMMEDIATE`] is the descriptor of a map.
const FROM_MAP: u8 = 1;

const LOAD_BYTES: i32 = 26;
const LOAD_BYTES_RELATIVE: i32 = 68;
const SELECT_REUSEPORT: i32 = 82;
const FROM_NETWORK_HEADER: i32 = 1;

const SK_DROP: i32 = 0;
const SK_PASS: i32 = 1;

// `struct sk_reuseport_md`.
const AT_ETHERTYPE: i16 = 20;
const AT_HASH: i16 = 32;

// Both as the packet has them: a number in network byte order.
const IPV4: u16 = 0x0800_u16.to_be();
const IPV6: u16 = 0x86dd_u16.to_be();
/// Where the two addresses begin in a header, source first, and how long both are.
const V4_ADDRESSES: (i32, i32) = (12, 8);
const V6_ADDRESSES: (i32, i32) = (8, 32);

// Registers: 0 is the answer of a call, 1 to 5 are its arguments, 6 keeps the context, 10 is the end of the stack.
const ANSWER: u8 = 0;
const CONTEXT: u8 = 6;
const TYPE: u8 = 7;
const INDEX: u8 = 8;
const TRIES: u8 = 9;
const STACK: u8 = 10;
/// Where the stack keeps a key, and what was loaded of a packet.
const KEY: i16 = -4;
const LOADED: i16 = -40;

/// A map and how many sockets are in it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Choice {
    pub map: i32,
    pub count: u32,
}

/// Where a jump leads that is not known yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Version6,
    Port,
    Serving,
    Pass,
}

#[derive(Debug, Default)]
struct Assembly {
    code: Vec<Instruction>,
    jumps: Vec<(usize, Place)>,
    places: Vec<(Place, usize)>,
}

pub(super) fn generate(serving: Choice, candidate: Option<(Probe, Choice)>) -> Vec<Instruction> {
    let mut assembly = Assembly::default();
    assembly.push(MOVE_REGISTER, (CONTEXT, 1), 0, 0);
    if let Some((probe, choice)) = candidate {
        assembly.sort_out_probes(probe);
        assembly.select(choice);
        assembly.jump(JUMP_EQUAL, (ANSWER, 0), 0, Place::Pass);
        // A candidate that is gone: its probe must not succeed at another's door.
        assembly.end(SK_DROP);
    }
    assembly.here(Place::Serving);
    assembly.select(serving);
    // If all of them are gone, the kernel picks one of the group.
    assembly.here(Place::Pass);
    assembly.end(SK_PASS);
    assembly.finish()
}

/// The shortest program: it leaves the choice to the kernel.
pub(super) fn pass() -> Vec<Instruction> {
    let mut assembly = Assembly::default();
    assembly.end(SK_PASS);
    assembly.finish()
}

impl Assembly {
    /// Registers: destination, source.
    fn push(&mut self, code: u8, (to, from): (u8, u8), offset: i16, immediate: i32) {
        self.code.push(Instruction { code, registers: to | from << 4, offset, immediate });
    }

    fn jump(&mut self, code: u8, registers: (u8, u8), immediate: i32, place: Place) {
        self.jumps.push((self.code.len(), place));
        self.push(code, registers, 0, immediate);
    }

    fn here(&mut self, place: Place) {
        self.places.push((place, self.code.len()));
    }

    fn end(&mut self, answer: i32) {
        self.push(MOVE, (ANSWER, 0), 0, answer);
        self.push(EXIT, (0, 0), 0, 0);
    }

    /// Lets probes through, and jumps to the serving sockets with all else.
    fn sort_out_probes(&mut self, probe: Probe) {
        self.push(LOAD_WORD, (TYPE, CONTEXT), AT_ETHERTYPE, 0);
        self.jump(JUMP_NOT_EQUAL, (TYPE, 0), i32::from(IPV4), Place::Version6);
        self.load_addresses(V4_ADDRESSES);
        self.compare(LOAD_WORD, LOADED, LOADED + 4);
        self.jump(JUMP, (0, 0), 0, Place::Port);
        self.here(Place::Version6);
        self.jump(JUMP_NOT_EQUAL, (TYPE, 0), i32::from(IPV6), Place::Serving);
        self.load_addresses(V6_ADDRESSES);
        self.compare(LOAD_DOUBLE, LOADED, LOADED + 16);
        self.compare(LOAD_DOUBLE, LOADED + 8, LOADED + 24);
        self.here(Place::Port);
        // Both TCP and UDP begin with the source port.
        self.call_load(LOAD_BYTES, 0, 2);
        self.push(LOAD_HALF, (1, STACK), LOADED, 0);
        self.jump(JUMP_NOT_EQUAL, (1, 0), i32::from(probe.port.to_be()), Place::Serving);
    }

    fn load_addresses(&mut self, (offset, length): (i32, i32)) {
        self.push(MOVE, (5, 0), 0, FROM_NETWORK_HEADER);
        self.call_load(LOAD_BYTES_RELATIVE, offset, length);
    }

    /// Loads a part of the packet to the stack; to the serving sockets with a packet that does not have it.
    fn call_load(&mut self, function: i32, offset: i32, length: i32) {
        self.push(MOVE_REGISTER, (1, CONTEXT), 0, 0);
        self.push(MOVE, (2, 0), 0, offset);
        self.push(MOVE_REGISTER, (3, STACK), 0, 0);
        self.push(ADD, (3, 0), 0, i32::from(LOADED));
        self.push(MOVE, (4, 0), 0, length);
        self.push(CALL, (0, 0), 0, function);
        self.jump(JUMP_NOT_EQUAL, (ANSWER, 0), 0, Place::Serving);
    }

    /// To the serving sockets if two parts of the stack differ.
    fn compare(&mut self, width: u8, one: i16, other: i16) {
        self.push(width, (1, STACK), one, 0);
        self.push(width, (2, STACK), other, 0);
        self.jump(JUMP_NOT_EQUAL_REGISTER, (1, 2), 0, Place::Serving);
    }

    /// Picks one of a map by the hash, and the next one where there is none any more; the answer is 0 if that was possible.
    fn select(&mut self, choice: Choice) {
        let count = i32::try_from(choice.count.max(1)).unwrap_or(i32::MAX);
        self.push(LOAD_WORD, (INDEX, CONTEXT), AT_HASH, 0);
        self.push(MOVE, (TRIES, 0), 0, count);
        let again = self.code.len();
        self.push(REMAINDER, (INDEX, 0), 0, count);
        self.push(STORE_WORD, (STACK, INDEX), KEY, 0);
        self.push(MOVE_REGISTER, (1, CONTEXT), 0, 0);
        self.push(LOAD_IMMEDIATE, (2, FROM_MAP), 0, choice.map);
        self.push(0, (0, 0), 0, 0);
        self.push(MOVE_REGISTER, (3, STACK), 0, 0);
        self.push(ADD, (3, 0), 0, i32::from(KEY));
        self.push(MOVE, (4, 0), 0, 0);
        self.push(CALL, (0, 0), 0, SELECT_REUSEPORT);
        // Past what is between here and the end of this.
        self.push(JUMP_EQUAL, (ANSWER, 0), 3, 0);
        self.push(ADD, (INDEX, 0), 0, 1);
        self.push(SUBTRACT, (TRIES, 0), 0, 1);
        let back = i16::try_from(self.code.len() + 1 - again).unwrap_or_default();
        self.push(JUMP_NOT_EQUAL, (TRIES, 0), -back, 0);
    }

    /// Jumps count from the instruction after them.
    fn finish(mut self) -> Vec<Instruction> {
        for (at, place) in self.jumps {
            let target = self.places.iter().find(|(known, _)| *known == place).map_or(at, |(_, target)| *target);
            self.code[at].offset = i16::try_from(target.saturating_sub(at + 1)).unwrap_or_default();
        }
        self.code
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_jump_leads_to_an_instruction_and_back_only_as_often_as_there_are_sockets() {
        let choice = Choice { map: 3, count: 2 };
        for (candidate, loops) in [(None, 1), (Some((Probe { port: 1 }, choice)), 2)] {
            let code = generate(choice, candidate);
            let mut back = 0;
            for (at, instruction) in code.iter().enumerate() {
                if [JUMP, JUMP_EQUAL, JUMP_NOT_EQUAL, JUMP_NOT_EQUAL_REGISTER].contains(&instruction.code) {
                    let target = at.strict_add_signed(1 + isize::from(instruction.offset));
                    assert!(target < code.len(), "{at}: {instruction:?}");
                    assert_ne!(code[target].code, 0, "{at}: into the middle of an instruction");
                    if target <= at {
                        back += 1;
                        assert_eq!((instruction.code, instruction.registers), (JUMP_NOT_EQUAL, TRIES));
                        assert_eq!((code[at - 1].code, code[at - 1].registers), (SUBTRACT, TRIES));
                        assert_eq!((code[target - 1].code, code[target - 1].immediate), (MOVE, 2));
                    }
                }
            }
            assert_eq!(back, loops);
        }
    }
}
