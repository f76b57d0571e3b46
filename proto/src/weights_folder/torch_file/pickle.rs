//! Reads the pickle in a PyTorch file as data: which tensors there are, and in which storages. Pure.
//!
//! A pickle is a program for a small stack machine (Python's `pickletools` lists its instructions), and what unpickles it may be told to
//! call anything. Here nothing is called: the few functions that weights are made of are known by name and become data; any
//! other name is an error.

use std::collections::HashMap;
use std::rc::Rc;

/// A tensor as the pickle describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PickledTensor {
    /// The storage's name in the archive.
    pub storage: Rc<str>,
    /// The storage's class, such as `BFloat16Storage`.
    pub class: Rc<str>,
    /// Index of its first element in the storage.
    pub offset: u64,
    /// Its shape.
    pub shape: Vec<u64>,
    /// How far apart neighbours in each dim are, in elements.
    pub stride: Vec<u64>,
}

#[derive(Debug, Clone)]
enum Value {
    /// Whatever makes no difference to weights: None, booleans, floats.
    Other,
    Int(i64),
    Text(Rc<str>),
    Tuple(Rc<[Value]>),
    List(Vec<Value>),
    Dict(Vec<(Value, Value)>),
    /// A name that would be imported.
    Global(Rc<str>),
    Storage {
        class: Rc<str>,
        key: Rc<str>,
    },
    Tensor(Rc<PickledTensor>),
}

type Result<T> = std::result::Result<T, String>;

/// The tensors of a dictionary from names to tensors, in its order.
pub fn tensors(pickle: &[u8]) -> Result<Vec<(String, PickledTensor)>> {
    let Value::Dict(entries) = Machine::new(pickle).run()? else {
        return Err("holds no dictionary of tensors".into());
    };
    let tensor = |(name, value)| match (name, value) {
        (Value::Text(name), Value::Tensor(tensor)) => Ok((name.to_string(), tensor.as_ref().clone())),
        (Value::Text(name), _) => Err(format!("{name} is no tensor: only a model's own state_dict is read")),
        _ => Err("a tensor without a name".into()),
    };
    entries.into_iter().map(tensor).collect()
}

struct Machine<'a> {
    rest: &'a [u8],
    stack: Vec<Value>,
    /// The lengths of the stack at the marks.
    marks: Vec<usize>,
    memo: HashMap<u64, Value>,
}

impl<'a> Machine<'a> {
    fn new(pickle: &'a [u8]) -> Self {
        Self { rest: pickle, stack: vec![], marks: vec![], memo: HashMap::new() }
    }

    /// Follows the instructions up to the last one.
    fn run(mut self) -> Result<Value> {
        loop {
            let [instruction] = self.take::<1>()?;
            match instruction {
                b'.' => return self.pop(),
                // PROTO, FRAME
                0x80 => drop(self.take::<1>()?),
                0x95 => drop(self.take::<8>()?),
                b'(' => self.marks.push(self.stack.len()),
                b'}' => self.stack.push(Value::Dict(vec![])),
                b']' => self.stack.push(Value::List(vec![])),
                b')' => self.stack.push(Value::Tuple([].into())),
                // NONE, NEWTRUE, NEWFALSE, BINFLOAT
                b'N' | 0x88 | 0x89 => self.stack.push(Value::Other),
                b'G' => {
                    self.take::<8>()?;
                    self.stack.push(Value::Other);
                }
                // BININT, BININT1, BININT2, LONG1
                b'J' => self.push_int(|machine| machine.take().map(|bytes| i64::from(i32::from_le_bytes(bytes))))?,
                b'K' => self.push_int(|machine| machine.take::<1>().map(|[byte]| i64::from(byte)))?,
                b'M' => self.push_int(|machine| machine.take().map(|bytes| i64::from(u16::from_le_bytes(bytes))))?,
                0x8a => self.push_int(Self::long)?,
                // BINUNICODE, SHORT_BINUNICODE
                b'X' => {
                    let length = u32::from_le_bytes(self.take()?);
                    self.push_text(u64::from(length))?;
                }
                0x8c => {
                    let [length] = self.take()?;
                    self.push_text(u64::from(length))?;
                }
                // BINPUT, LONG_BINPUT, MEMOIZE
                b'q' => {
                    let [key] = self.take()?;
                    self.remember(u64::from(key))?;
                }
                b'r' => {
                    let key = u32::from_le_bytes(self.take()?);
                    self.remember(u64::from(key))?;
                }
                0x94 => self.remember(self.memo.len() as u64)?,
                // BINGET, LONG_BINGET
                b'h' => {
                    let [key] = self.take()?;
                    self.recall(u64::from(key))?;
                }
                b'j' => {
                    let key = u32::from_le_bytes(self.take()?);
                    self.recall(u64::from(key))?;
                }
                b't' => {
                    let items = self.pop_to_mark()?;
                    self.stack.push(Value::Tuple(items.into()));
                }
                0x85..=0x87 => {
                    let start = self.stack.len().checked_sub(usize::from(instruction - 0x84)).ok_or_else(too_short)?;
                    let items = self.stack.split_off(start);
                    self.stack.push(Value::Tuple(items.into()));
                }
                // SETITEM, SETITEMS, APPEND, APPENDS
                b's' => {
                    let (value, key) = (self.pop()?, self.pop()?);
                    self.set(vec![key, value])?;
                }
                b'u' => {
                    let items = self.pop_to_mark()?;
                    self.set(items)?;
                }
                b'a' => {
                    let item = self.pop()?;
                    self.append(vec![item])?;
                }
                b'e' => {
                    let items = self.pop_to_mark()?;
                    self.append(items)?;
                }
                // GLOBAL, STACK_GLOBAL
                b'c' => {
                    let (module, name) = (self.line()?, self.line()?);
                    self.stack.push(Value::Global(format!("{module}.{name}").into()));
                }
                0x93 => {
                    let (name, module) = (self.pop_text()?, self.pop_text()?);
                    self.stack.push(Value::Global(format!("{module}.{name}").into()));
                }
                b'Q' => {
                    let value = self.pop()?;
                    self.stack.push(storage(&value)?);
                }
                b'R' => {
                    let (arguments, function) = (self.pop()?, self.pop()?);
                    self.stack.push(call(&function, &arguments)?);
                }
                // BUILD: the attributes of a dictionary.
                b'b' => {
                    self.pop()?;
                    if !matches!(self.stack.last(), Some(Value::Dict(_))) {
                        return Err("gives attributes to something that is no dictionary".into());
                    }
                }
                other => return Err(format!("has the instruction {other:#04x}, which weights do not need")),
            }
        }
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N]> {
        let (bytes, rest) = self.rest.split_first_chunk::<N>().ok_or_else(too_short)?;
        self.rest = rest;
        Ok(*bytes)
    }

    fn take_slice(&mut self, length: u64) -> Result<&'a [u8]> {
        let length = usize::try_from(length).ok().filter(|length| *length <= self.rest.len()).ok_or_else(too_short)?;
        let (bytes, rest) = self.rest.split_at(length);
        self.rest = rest;
        Ok(bytes)
    }

    /// A number of at most eight bytes, the last of which has the sign.
    fn long(&mut self) -> Result<i64> {
        let [length] = self.take()?;
        let bytes = self.take_slice(u64::from(length))?;
        if bytes.len() > 8 {
            return Err("has a number of more than 64 bits".into());
        }
        let is_negative = bytes.last().is_some_and(|byte| byte & 0x80 != 0);
        let mut whole = [if is_negative { 0xff } else { 0 }; 8];
        whole[..bytes.len()].copy_from_slice(bytes);
        Ok(i64::from_le_bytes(whole))
    }

    fn push_int(&mut self, read: impl FnOnce(&mut Self) -> Result<i64>) -> Result<()> {
        let number = read(self)?;
        self.stack.push(Value::Int(number));
        Ok(())
    }

    fn push_text(&mut self, length: u64) -> Result<()> {
        let bytes = self.take_slice(length)?;
        let text = std::str::from_utf8(bytes).map_err(|_| "has a text that is not UTF-8".to_owned())?;
        self.stack.push(Value::Text(text.into()));
        Ok(())
    }

    fn line(&mut self) -> Result<&'a str> {
        let end = self.rest.iter().position(|byte| *byte == b'\n').ok_or_else(too_short)?;
        let line = self.take_slice(end as u64 + 1)?;
        std::str::from_utf8(&line[..end]).map_err(|_| "has a name that is not UTF-8".to_owned())
    }

    fn pop(&mut self) -> Result<Value> {
        // What lies below a mark belongs to whoever set it.
        let bottom = self.marks.last().copied().unwrap_or(0);
        if self.stack.len() <= bottom {
            return Err(too_short());
        }
        self.stack.pop().ok_or_else(too_short)
    }

    fn pop_text(&mut self) -> Result<Rc<str>> {
        match self.pop()? {
            Value::Text(text) => Ok(text),
            _ => Err("has a name that is no text".into()),
        }
    }

    fn pop_to_mark(&mut self) -> Result<Vec<Value>> {
        let mark = self.marks.pop().filter(|mark| *mark <= self.stack.len()).ok_or_else(too_short)?;
        Ok(self.stack.split_off(mark))
    }

    fn set(&mut self, items: Vec<Value>) -> Result<()> {
        let Some(Value::Dict(entries)) = self.stack.last_mut() else {
            return Err("sets entries of something that is no dictionary".into());
        };
        let mut items = items.into_iter();
        while let Some(key) = items.next() {
            entries.push((key, items.next().ok_or_else(too_short)?));
        }
        Ok(())
    }

    fn append(&mut self, items: Vec<Value>) -> Result<()> {
        let Some(Value::List(list)) = self.stack.last_mut() else {
            return Err("appends to something that is no list".into());
        };
        list.extend(items);
        Ok(())
    }

    /// Remembers the value on top. Of dictionaries and lists only empty ones: so none is ever copied.
    fn remember(&mut self, key: u64) -> Result<()> {
        let value = match self.stack.last().ok_or_else(too_short)? {
            Value::Dict(entries) if !entries.is_empty() => Value::Other,
            Value::List(items) if !items.is_empty() => Value::Other,
            value => value.clone(),
        };
        self.memo.insert(key, value);
        Ok(())
    }

    fn recall(&mut self, key: u64) -> Result<()> {
        let value = self.memo.get(&key).cloned().ok_or("recalls what it has not remembered")?;
        self.stack.push(value);
        Ok(())
    }
}

fn too_short() -> String {
    "its pickle is cut short or damaged".into()
}

/// A storage, by `("storage", class, key, device, number of elements)`.
fn storage(id: &Value) -> Result<Value> {
    match id {
        Value::Tuple(parts) => match &parts[..] {
            [Value::Text(kind), Value::Global(class), Value::Text(key), ..] if **kind == *"storage" => {
                let class = class.rsplit('.').next().unwrap_or(class).into();
                Ok(Value::Storage { class, key: key.clone() })
            }
            _ => Err("refers to something that is no storage".into()),
        },
        _ => Err("refers to something that is no storage".into()),
    }
}

/// What a call would make of its arguments, if it is one of those that weights are made of.
fn call(function: &Value, arguments: &Value) -> Result<Value> {
    let (Value::Global(name), Value::Tuple(arguments)) = (function, arguments) else {
        return Err("calls something that has no name".into());
    };
    match (&**name, &arguments[..]) {
        ("collections.OrderedDict", []) => Ok(Value::Dict(vec![])),
        ("torch._utils._rebuild_tensor_v2", [Value::Storage { class, key }, Value::Int(offset), shape, stride, ..]) => {
            Ok(Value::Tensor(Rc::new(PickledTensor {
                storage: key.clone(),
                class: class.clone(),
                offset: u64::try_from(*offset).map_err(|_| "has a tensor that begins before its storage")?,
                shape: numbers(shape)?,
                stride: numbers(stride)?,
            })))
        }
        ("torch._utils._rebuild_parameter", [tensor @ Value::Tensor(_), ..]) => Ok(tensor.clone()),
        _ => Err(format!("asks for {name}, which weights do not need: it is not read any further")),
    }
}

fn numbers(value: &Value) -> Result<Vec<u64>> {
    let number = |value: &Value| match value {
        Value::Int(number) => u64::try_from(*number).map_err(|_| "has a negative size".to_owned()),
        _ => Err("has a size that is no number".into()),
    };
    match value {
        Value::Tuple(items) => items.iter().map(number).collect(),
        _ => Err("has a shape that is no tuple".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `{name: tensor}` as `torch.save` writes it, by hand: one tensor `[2, 3]` of the storage "7".
    fn pickle(rebuild: &str) -> Vec<u8> {
        let mut bytes = b"\x80\x02}q\x00(X\x01\x00\x00\x00wq\x01".to_vec();
        bytes.extend(format!("c{rebuild}\nq\x02((X\x07\x00\x00\x00storageq\x03").bytes());
        bytes.extend(b"ctorch\nBFloat16Storage\nq\x04X\x01\x00\x00\x007q\x05X\x03\x00\x00\x00cpuq\x06K\x06tq\x07Q");
        bytes.extend(
            b"M\x01\x01K\x02K\x03\x86q\x08K\x03K\x01\x86q\x09\x89ccollections\nOrderedDict\nq\x0a)Rq\x0btq\x0cRq\x0du.",
        );
        bytes
    }

    #[test]
    fn a_tensor_is_told_by_its_storage_and_its_place() {
        let tensor = PickledTensor {
            storage: "7".into(),
            class: "BFloat16Storage".into(),
            offset: 257,
            shape: vec![2, 3],
            stride: vec![3, 1],
        };
        let read = tensors(&pickle("torch._utils\n_rebuild_tensor_v2")).unwrap();
        assert_eq!(read, [("w".to_owned(), tensor)]);
    }

    #[test]
    fn nothing_is_called_and_every_other_name_is_told() {
        let refused = tensors(&pickle("os\nsystem")).unwrap_err();
        assert_eq!(refused, "asks for os.system, which weights do not need: it is not read any further");
        let builtin = b"\x80\x02cbuiltins\neval\nX\x01\x00\x00\x001\x85R.";
        assert!(tensors(builtin).unwrap_err().contains("builtins.eval"));
        // INST and OBJ make objects without REDUCE.
        for instruction in [b'i', b'o', 0x81, 0x92] {
            let refused = tensors(&[0x80, 2, instruction, b'.']).unwrap_err();
            assert!(refused.contains("which weights do not need"), "{refused}");
        }
    }

    #[test]
    fn damaged_ones_are_errors_wherever_they_end() {
        let whole = pickle("torch._utils\n_rebuild_tensor_v2");
        for end in 0..whole.len() {
            tensors(&whole[..end]).unwrap_err();
        }
        for at in 0..whole.len() {
            for bit in 0..8 {
                let mut flipped = whole.clone();
                flipped[at] ^= 1 << bit;
                // It may be another tensor; it must not be a panic.
                let _ = tensors(&flipped);
            }
        }
        assert_eq!(tensors(b"\x80\x02K\x01.").unwrap_err(), "holds no dictionary of tensors");
    }

    #[test]
    fn what_is_remembered_many_times_is_no_larger() {
        // A tuple of two of the tuple before, 200 times: 2^200 elements if they were copied.
        let mut bytes = b"\x80\x04)".to_vec();
        for key in 0..200u8 {
            bytes.extend([b'q', key, b'h', key, 0x86]);
        }
        bytes.push(b'.');
        assert_eq!(tensors(&bytes).unwrap_err(), "holds no dictionary of tensors");
    }
}
