# frozen_string_literal: true

require 'minitest/autorun'
require 'roman'

class TestRoman < Minitest::Test
  def test_digits_that_are_taken_away
    assert_equal 'MCMXCIV', Roman.numeral(1994)
  end

  def test_what_has_no_numeral
    assert_raises(ArgumentError) { Roman.numeral(0) }
  end
end
