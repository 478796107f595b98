#include "app/gui/prompt_panel.h"

#include "app/gui/background.h"
#include "app/gui/theme.h"
#include "engine/data/error.h"

#include <QCheckBox>
#include <QComboBox>
#include <QDir>
#include <QFile>
#include <QFileDialog>
#include <QHBoxLayout>
#include <QLabel>
#include <QPlainTextEdit>
#include <QSignalBlocker>
#include <QSlider>
#include <QSpinBox>
#include <QStringDecoder>
#include <QTimer>
#include <QToolButton>
#include <QVBoxLayout>

#include <algorithm>
#include <cmath>

namespace keepsight {

namespace {

constexpr qint64 MaxTextBytes = 4 << 20; // far beyond any context this machine can prefill

QString sampleTitle(const QString& fileName) {
    QString title = fileName.section('.', 0, -2);
    title.replace('_', ' ').replace('-', ' ');
    if (!title.isEmpty()) title[0] = title[0].toUpper();
    return title;
}

QString readText(const QString& path) {
    QFile file(path);
    if (!file.open(QIODevice::ReadOnly))
        throw EngineError(QObject::tr("Cannot read %1: %2.").arg(QDir::toNativeSeparators(path), file.errorString()).toStdString());
    if (file.size() > MaxTextBytes)
        throw EngineError(QObject::tr("%1 holds %2 MB; at most %3 MB of text can be a prompt.")
                              .arg(QDir::toNativeSeparators(path)).arg(double(file.size()) / 1048576.0, 0, 'f', 1).arg(MaxTextBytes >> 20).toStdString());
    const QByteArray bytes = file.readAll();
    QStringDecoder utf8(QStringDecoder::Utf8);
    const QString text = utf8(bytes);
    if (utf8.hasError() || bytes.contains('\0'))
        throw EngineError(QObject::tr("%1 is not UTF-8 text.").arg(QDir::toNativeSeparators(path)).toStdString());
    return text;
}

} // namespace

PromptPanel::PromptPanel(QWidget* parent)
    : QWidget(parent), m_samples(new QComboBox), m_edit(new QPlainTextEdit), m_chat(new QCheckBox(tr("Chat frame"))), m_percent(new QSpinBox),
      m_slider(new QSlider(Qt::Horizontal)), m_count(new QLabel), m_pause(new QTimer(this)) {
    m_samples->setAccessibleName(tr("Sample text"));
    m_samples->setToolTip(tr("Texts that come with the program"));
    m_samples->addItem(tr("Own text"));
    for (const char* folder : {":/texts", ":/prompts"})
        for (const auto& file : QDir(folder).entryInfoList({"*.txt"}, QDir::Files, QDir::Name))
            m_samples->addItem(sampleTitle(file.fileName()), file.filePath());
    m_samples->setSizeAdjustPolicy(QComboBox::AdjustToMinimumContentsLengthWithIcon);
    m_samples->setMinimumContentsLength(8);

    auto* open = new QToolButton;
    open->setIcon(themedIcon("open"));
    open->setObjectName("openText");
    open->setToolTip(tr("Open a text file"));
    open->setAccessibleName(tr("Open a text file"));

    m_edit->setObjectName("promptEdit");
    m_edit->setAccessibleName(tr("Text of the run"));
    m_edit->setPlaceholderText(tr("Type or drop a text"));
    m_edit->setTabChangesFocus(true);
    m_edit->setMinimumHeight(58);
    m_edit->setMaximumHeight(92);
    m_chat->setToolTip(tr("Wrap the text as the user's turn of the model's chat frame"));

    m_percent->setRange(1, 99);
    m_percent->setSuffix(tr(" %"));
    m_percent->setAccessibleName(tr("Share of the text that is prefilled"));
    m_percent->setToolTip(tr("Score prefills this share of the text, evicts, and feeds the rest token by token"));
    m_slider->setRange(1, 99);
    m_slider->setAccessibleName(tr("Share of the text that is prefilled"));
    m_percent->setValue(75);
    m_slider->setValue(75);
    m_count->setProperty("role", "quiet");

    auto* top = new QHBoxLayout;
    top->addWidget(m_samples, 1);
    top->addWidget(open);
    auto* prefix = new QHBoxLayout;
    prefix->addWidget(new QLabel(tr("Prefix")));
    prefix->addWidget(m_slider, 1);
    prefix->addWidget(m_percent);
    auto* foot = new QHBoxLayout;
    foot->addWidget(m_count, 1);
    foot->addWidget(m_chat);
    auto* column = new QVBoxLayout(this);
    column->setContentsMargins(0, 0, 0, 0);
    column->setSpacing(4);
    column->addLayout(top);
    column->addWidget(m_edit);
    column->addLayout(foot);
    column->addLayout(prefix);

    m_pause->setSingleShot(true);
    m_pause->setInterval(300);
    connect(m_pause, &QTimer::timeout, this, &PromptPanel::changed);
    connect(m_edit, &QPlainTextEdit::textChanged, this, [this] {
        m_tokens = -1;
        showPrefix();
        if (!m_setting) {
            m_file.clear();
            m_ids.reset();
            m_special = false;
            const QSignalBlocker block(m_samples);
            m_samples->setCurrentIndex(0);
        }
        m_pause->start();
    });
    connect(m_samples, &QComboBox::activated, this, &PromptPanel::chooseSample);
    connect(m_chat, &QCheckBox::toggled, this, [this] { m_pause->start(); });
    connect(m_slider, &QSlider::valueChanged, m_percent, &QSpinBox::setValue);
    connect(m_percent, &QSpinBox::valueChanged, this, [this](int value) {
        m_slider->setValue(value);
        showPrefix();
        m_pause->start();
    });
    connect(open, &QToolButton::clicked, this, [this] {
        const QString path = QFileDialog::getOpenFileName(this, tr("Open a text"), Settings().lastFolder(), tr("Text (*.txt *.md);;All files (*)"));
        if (!path.isEmpty()) loadFile(path);
    });
    if (m_samples->count() > 1) {
        const int first = std::max(1, m_samples->findData(":/texts/lighthouse.txt")); // short enough to score in seconds
        m_samples->setCurrentIndex(first);
        chooseSample(first);
    }
    showPrefix();
}

void PromptPanel::chooseSample(int index) {
    const QString path = m_samples->itemData(index).toString();
    if (path.isEmpty()) return;
    QFile file(path);
    if (!file.open(QIODevice::ReadOnly)) return;
    m_setting = true;
    m_edit->setPlainText(QString::fromUtf8(file.readAll()));
    m_setting = false;
    m_file.clear();
    m_ids.reset();
    m_special = false;
}

void PromptPanel::loadFile(const QString& path) {
    inBackground(
        this, [path] { return readText(path); },
        [this, path](const QString& text) {
            m_setting = true;
            m_edit->setPlainText(text);
            m_setting = false;
            m_file = path;
            m_ids.reset();
            m_special = false;
            const QSignalBlocker block(m_samples);
            m_samples->setCurrentIndex(0);
            Settings().setLastFolder(QFileInfo(path).absolutePath());
        },
        [this](const QString& reason) { Q_EMIT failed(reason); });
}

PromptSpec PromptPanel::prompt() const {
    PromptSpec spec;
    spec.text = m_edit->toPlainText().toStdString();
    spec.ids = m_ids;
    spec.chat = m_chat->isChecked();
    spec.special = m_special;
    return spec;
}

void PromptPanel::setPrompt(const PromptSpec& prompt) {
    m_setting = true;
    m_edit->setPlainText(QString::fromStdString(prompt.text));
    m_chat->setChecked(prompt.chat);
    m_setting = false;
    m_ids = prompt.ids;
    m_special = prompt.special;
    m_file.clear();
    const QSignalBlocker block(m_samples);
    m_samples->setCurrentIndex(0);
    for (int i = 1; i < m_samples->count(); ++i) {
        QFile file(m_samples->itemData(i).toString());
        if (file.open(QIODevice::ReadOnly) && file.readAll() == QByteArray::fromStdString(prompt.text)) m_samples->setCurrentIndex(i);
    }
}

double PromptPanel::prefixRatio() const { return m_percent->value() / 100.0; }

void PromptPanel::setPrefixRatio(double ratio) { m_percent->setValue(std::clamp(int(std::lround(ratio * 100)), 1, 99)); }

void PromptPanel::setTokenCount(int tokens) {
    m_tokens = tokens;
    showPrefix();
}

void PromptPanel::showPrefix() {
    if (m_tokens < 0) {
        m_count->setText(tr("%n characters", nullptr, int(m_edit->document()->characterCount() - 1)));
        return;
    }
    const int prefix = std::clamp(int(std::floor(m_tokens * prefixRatio())), std::min(1, m_tokens), std::max(1, m_tokens - 1));
    m_count->setText(tr("%1 tokens, prefix %2").arg(m_tokens).arg(prefix));
}

} // namespace keepsight
