'use strict';

const SECONDS = { d: 86400, h: 3600, m: 60, s: 1 };

/** Seconds of a duration such as `1h30m`; null when it is none. */
exports.seconds = (text) => {
  if (!/^(\d+[dhms])+$/.test(text)) return null;
  return [...text.matchAll(/(\d+)([dhms])/g)].reduce((sum, [, count, unit]) => sum + count * SECONDS[unit], 0);
};
