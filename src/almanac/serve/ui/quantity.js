// Numbers as people read them.

const whole = new Intl.NumberFormat();
const compact = new Intl.NumberFormat(undefined, { notation: "compact", maximumSignificantDigits: 3 });

export const counted = (value) => whole.format(Math.round(value));
export const short = (value) => compact.format(value);

/** Four digits that count, and no power of ten where it can be helped. */
export function plain(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  return size >= 1e-3 && size < 1e6 ? String(Number(value.toPrecision(4))) : value.toExponential(2);
}

/** Bytes in powers of 1000. */
export function bytes(value) {
  const units = ["bytes", "kB", "MB", "GB", "TB"];
  let place = 0;
  while (Math.abs(value) >= 1000 && place < units.length - 1) {
    value /= 1000;
    place += 1;
  }
  return `${place ? Number(value.toPrecision(3)) : Math.round(value)} ${units[place]}`;
}

/** Seconds: 0.4 s, 12 min 5 s, 3 h 20 min, 2 d 4 h. */
export function time(seconds) {
  if (seconds < 60) return `${seconds < 10 ? seconds.toFixed(1) : Math.round(seconds)} s`;
  const all = Math.round(seconds);
  const minutes = Math.floor(all / 60);
  if (minutes < 60) return `${minutes} min ${all % 60} s`;
  const hours = Math.floor(minutes / 60);
  return hours < 48 ? `${hours} h ${minutes % 60} min` : `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

/** A value of a scale whose ticks are `pace` apart, all with the same digits; 0 where they are not evenly apart. */
export function tick(value, pace) {
  if (!pace) return plain(value);
  const digits = Math.max(0, Math.ceil(-Math.log10(pace) - 1e-9));
  return digits > 6 || Math.abs(value) >= 1e6 ? value.toExponential(1) : value.toFixed(digits);
}
