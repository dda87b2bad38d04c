# frozen_string_literal: true

# Numbers as the Romans wrote them.
module Roman
  DIGITS = {
    1000 => 'M', 900 => 'CM', 500 => 'D', 400 => 'CD', 100 => 'C', 90 => 'XC',
    50 => 'L', 40 => 'XL', 10 => 'X', 9 => 'IX', 5 => 'V', 4 => 'IV', 1 => 'I'
  }.freeze

  def self.numeral(number)
    raise ArgumentError, "no numeral for #{number}" unless number.between?(1, 3999)

    DIGITS.reduce(+'') { |text, (value, digit)| text << digit * (number / value).tap { number %= value } }
  end
end
