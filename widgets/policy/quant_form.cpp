#include "widgets/policy/quant_form.h"

namespace keepsight {
namespace {

std::vector<Choice> choicesOf(const std::vector<QuantInfo>& quantizers) {
    std::vector<Choice> out;
    for (const QuantInfo& quantizer : quantizers)
        out.push_back({quantizer.id, quantizer.aliases, quantizer.summary, quantizer.paper, {}, quantizer.params});
    return out;
}

} // namespace

QuantForm::QuantForm(const std::vector<QuantInfo>& quantizers, QWidget* parent)
    : ChoiceForm(choicesOf(quantizers),
                 {QStringLiteral("quantizer"), tr("&Stored as"), tr("Quantizer"), tr("About this quantizer"),
                  tr("This program has no quantizer of that name; choose another one."), tr("There is nothing to set."), tr("Type to search")},
                 0, parent) {}

QuantSpec QuantForm::parse(const std::string& text) const {
    QuantSpec out;
    const QString all = QString::fromStdString(text);
    out.id = all.section(QLatin1Char(':'), 0, 0).toStdString();
    for (const QString& pair : all.section(QLatin1Char(':'), 1).split(QLatin1Char(','), Qt::SkipEmptyParts))
        out.params[pair.section(QLatin1Char('='), 0, 0).toStdString()] = pair.section(QLatin1Char('='), 1).toStdString();
    return out;
}

} // namespace keepsight
