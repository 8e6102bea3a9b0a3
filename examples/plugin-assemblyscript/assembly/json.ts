// As much of JSON as a plugin needs.

/** A value. Numbers keep their text, so that none loses digits; what is missing is an empty text. */
export class Value {
  text: string = "";
  items: Value[] = [];
  keys: string[] = []; // of an object, as many as items

  get(key: string): Value {
    const i = this.keys.indexOf(key);
    return i < 0 ? new Value() : this.items[i];
  }
}

/** Reads a document; null when it is none. */
export function parse(text: string): Value | null {
  const r = new Reader(text);
  const v = r.value(0);
  r.space();
  return r.bad || r.at < text.length ? null : v;
}

class Reader {
  at: i32 = 0;
  bad: bool = false;
  constructor(public text: string) {}

  peek(): i32 {
    return this.at < this.text.length ? this.text.charCodeAt(this.at) : -1;
  }

  space(): void {
    while (this.peek() == 32 || (this.peek() >= 9 && this.peek() <= 13)) this.at++;
  }

  take(c: i32): bool {
    this.space();
    if (this.peek() != c) return false;
    this.at++;
    return true;
  }

  value(depth: i32): Value {
    const v = new Value();
    this.space();
    const c = this.peek();
    if (depth > 64) {
      this.bad = true;
    } else if (c == 34) {
      v.text = this.string();
    } else if (c == 123 || c == 91) {
      this.at++;
      const close = c + 2;
      if (this.take(close)) return v;
      while (!this.bad) {
        if (c == 123) {
          this.space();
          v.keys.push(this.string());
          if (!this.take(58)) this.bad = true;
        }
        v.items.push(this.value(depth + 1));
        if (this.take(close)) return v;
        if (!this.take(44)) this.bad = true;
      }
    } else {
      const start = this.at;
      while ((this.peek() >= 48 && this.peek() <= 57) || (this.peek() >= 97 && this.peek() <= 122) || this.peek() == 43 || this.peek() == 45 || this.peek() == 46 || this.peek() == 69) this.at++;
      v.text = this.text.substring(start, this.at);
      if (start == this.at) this.bad = true;
      if (v.text == "null") v.text = "";
    }
    return v;
  }

  string(): string {
    if (this.peek() != 34) {
      this.bad = true;
      return "";
    }
    let out = "", start = ++this.at;
    while (this.at < this.text.length) {
      const c = this.peek();
      if (c != 34 && c != 92) {
        this.at++;
        continue;
      }
      out += this.text.substring(start, this.at++);
      if (c == 34) return out;
      const escaped = this.peek();
      this.at++;
      if (escaped == 117) {
        out += String.fromCharCode(<i32>parseInt(this.text.substr(this.at, 4), 16));
        this.at += 4;
      } else {
        const i = "nrtbf".indexOf(String.fromCharCode(escaped));
        out += i < 0 ? String.fromCharCode(escaped) : "\n\r\t\b\f".charAt(i);
      }
      start = this.at;
    }
    this.bad = true;
    return out;
  }
}
