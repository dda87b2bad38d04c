'use strict';

const test = require('node:test');
const assert = require('node:assert');
const { seconds } = require('../src/duration');

test('durations are added up', () => assert.strictEqual(seconds('1h30m'), 5400));
test('what is no duration gives null', () => assert.strictEqual(seconds('soon'), null));
