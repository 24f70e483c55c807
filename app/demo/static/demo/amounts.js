// Amounts, written as templatetags/amounts.py writes them.

const UNITS = [[86400, "d", 3600, "h"], [3600, "h", 60, "min"], [60, "min", 1, "s"]];

export function duration(seconds) {
  if (seconds === null) return "—";
  for (const [size, unit, partSize, part] of UNITS) {
    if (seconds >= size) {
      return `${Math.floor(seconds / size)} ${unit} ${Math.floor((seconds % size) / partSize)} ${part}`;
    }
  }
  return 0 < seconds && seconds < 1 ? `${Math.round(seconds * 1000)} ms` : `${Number(seconds.toFixed(1))} s`;
}

export function megabytes(bytes) {
  return bytes === null ? "—" : `${Math.round(bytes / 1024 ** 2)} MB`;
}

// Whole numbers with commas; small ones with one digit behind the point.
export function number(value) {
  return value < 10 && value % 1 ? value.toFixed(1) : Math.round(value).toLocaleString("en");
}

// The smallest of the values that so many percent of all don't exceed; null of none.
export function percentile(values, percent) {
  if (values.length === 0) return null;
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.max(0, Math.ceil((sorted.length * percent) / 100) - 1)];
}
